"""Writes the JSON Schemas of all parameter files: ``python -m params.schemas``.

Editors complete and check YAML with them; Snakemake validates ``--config`` with them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from params import models
from params.hyperparameters import (
    declaration,
    metric_parameters,
    registered_files,
    teacher_parameters,
)
from params.sources import SOURCES

ROOT = Path(__file__).resolve().parents[1]


def _inheriting(schema: dict[str, Any]) -> dict[str, Any]:
    """Let a file leave out what it inherits, and name what it inherits from."""
    schema = dict(schema)
    schema.pop("required", None)
    schema["properties"] = {**schema["properties"], "extends": {"type": "string"}}
    return schema


def build(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Return every schema by its path below ``workflow/schemas/``."""
    partial = _inheriting(models.Benchmark.model_json_schema())
    benchmark = dict(
        partial, properties={**partial["properties"], "preset": {"type": ["string", "null"]}}
    )
    dataset = TypeAdapter(models.AnyDataset).json_schema()
    for name in ("Demo", "Mvtec", "Loco", "Visa"):
        dataset["$defs"][name] = _inheriting(dataset["$defs"][name])
    schemas = {
        "benchmark.schema.json": benchmark,
        "preset.schema.json": partial,
        "dataset.schema.json": dataset,
        "backbone.schema.json": _inheriting(models.Backbone.model_json_schema()),
        "metrics.schema.json": _metrics(root / "metrics" / "visionad_metrics" / "catalogue"),
        "figures.schema.json": models.Figures.model_json_schema(),
        "published.schema.json": SOURCES.json_schema(),
        "comparison.schema.json": models.Comparison.model_json_schema(),
        "report.schema.json": models.Report.model_json_schema(),
    }
    for source in registered_files(root / "algorithms"):
        schemas[f"algorithms/{source.stem}.schema.json"] = _configuration(
            models.Algorithm, declaration(source).hyperparameters
        )
    for source in sorted((root / "algorithms" / "teachers").glob("[!_]*.py")):
        schemas[f"teachers/{source.stem}.schema.json"] = _configuration(
            models.Teacher, teacher_parameters(source)
        )
    for schema in schemas.values():
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schemas


def _configuration(model: type[models.Strict], hyperparameters: type[BaseModel]) -> dict[str, Any]:
    """Schema of a YAML with ``parameters`` and ``variants`` of it."""
    schema = _inheriting(model.model_json_schema())
    schema["properties"]["parameters"] = hyperparameters.model_json_schema()
    variant = dict(schema, title="variant")
    variant.pop("$defs", None)
    variants = {"type": "object", "additionalProperties": variant}
    return dict(schema, properties={**schema["properties"], "variants": variants})


def _metrics(catalogue: Path) -> dict[str, Any]:
    """Name the parameters of every metric; names of one's own need the key `metric`."""
    schema = models.Metrics.model_json_schema()
    known = sorted(catalogue.glob("[!_]*.py"))
    names = {"metric": {"enum": [file.stem for file in known]}}
    properties = {}
    for file in known:
        own = metric_parameters(file).model_json_schema()
        properties[file.stem] = {**own, "properties": {**names, **own.get("properties", {})}}
    schema["properties"]["parameters"] |= {
        "properties": properties,
        "additionalProperties": {"type": "object", "properties": names, "required": ["metric"]},
    }
    return schema


def main() -> None:
    """Write the schemas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "workflow" / "schemas")
    folder = parser.parse_args().folder
    for name, schema in build().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(schema, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
