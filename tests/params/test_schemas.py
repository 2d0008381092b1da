"""The JSON Schemas that editors and Snakemake use agree with the models and with every file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from params import schemas

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflow" / "schemas"
PREFIX = "# yaml-language-server: $schema="
FILES = sorted((ROOT / "params").rglob("*.yaml"))


def schema_of(path: Path) -> dict[str, Any]:
    """Read the schema that a YAML file's first line names."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(PREFIX), f"{path}: the first line must name the schema"
    schema = (path.parent / first.removeprefix(PREFIX)).resolve()
    assert schema.is_relative_to(FOLDER)
    return json.loads(schema.read_text(encoding="utf-8"))


def errors(schema: dict[str, Any], data: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(data)]


def test_committed_schemas_are_those_of_the_models():
    committed = {
        path.relative_to(FOLDER).as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in FOLDER.rglob("*.json")
    }
    built = json.loads(json.dumps(schemas.build()))
    assert sorted(committed) == sorted(built), "run: make schemas"
    for name, schema in built.items():
        assert committed[name] == schema, f"{name} is out of date; run: make schemas"


def test_command_writes_them(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "params.schemas", "--folder", tmp_path], cwd=ROOT, check=True
    )
    for path in FOLDER.rglob("*.json"):
        assert (tmp_path / path.relative_to(FOLDER)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_is_valid(path):
    schema = schema_of(path)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert errors(schema, yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_unknown_keys_are_refused(path):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert errors(schema_of(path), {**data, "surely_unknown": 1})


def test_hyperparameters_and_variants_are_checked():
    schema = json.loads((FOLDER / "algorithms/padim.schema.json").read_text())
    assert errors(schema, {"algorithm": "padim", "parameters": {"max_features": 10}}) == []
    assert errors(schema, {"parameters": {"max_feature": 10}})
    assert errors(schema, {"parameters": {"max_features": "many"}})
    assert errors(schema, {"variants": {"cpu": {"parameters": {"max_feature": 10}}}})
    assert errors(schema, {"variants": {"cpu": {"epoch": 10}}})


def test_every_algorithm_has_a_schema():
    named = {path.stem.removesuffix(".schema") for path in (FOLDER / "algorithms").glob("*.json")}
    registered = {
        path.stem for path in (ROOT / "algorithms").glob("*.py") if "@register(" in path.read_text()
    }
    assert named == registered
