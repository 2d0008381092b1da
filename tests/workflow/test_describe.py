"""Pages of docs/algorithms/: what the code says, and nothing out of date."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from params.hyperparameters import declaration, registered_files
from params.reading import read_config, read_yaml
from workflow.describe import (
    FOLDER,
    VISIONAD,
    beside_visionad,
    configurations,
    hyperparameters,
    page,
    pages,
    sections,
)
from workflow.job import ROOT

FILES = registered_files(ROOT / "algorithms")


def test_committed_pages_are_those_of_the_code() -> None:
    wanted = pages(ROOT)
    assert {path.relative_to(ROOT) for path in (ROOT / FOLDER).glob("*.md")} == set(wanted)
    for path, text in wanted.items():
        assert (ROOT / path).read_text("utf-8") == text, f"{path}: run make docs"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_docstring_has_what_a_page_needs(file: Path) -> None:
    found = sections(ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "")
    name, colon, idea = found[""].splitlines()[0].partition(": ")
    assert name and colon and idea.endswith(".")
    if file.stem != "random":
        assert found["Verified"], "what is checked against what"
        assert found["Note"], "differences from the paper and its code"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_hyperparameters_are_those_that_the_plan_reads(file: Path) -> None:
    listed = {name for name, _, _ in hyperparameters(file.read_text("utf-8"))}
    assert listed == set(declaration(file).hyperparameters.model_fields)


def test_comments_of_fields() -> None:
    source = """
class Hyperparameters:
    plain: int = 3
    told: float = 0.5  # why, in px
    long: tuple[int, ...] = (
        1,
        2,
    )  # at its end
"""
    assert hyperparameters(source) == [
        ("plain", "3", ""), ("told", "0.5", "why, in px"), ("long", "(1, 2)", "at its end"),
    ]  # fmt: skip


def test_configurations_hold_what_they_inherit() -> None:
    rows = {row["configuration"]: row for row in configurations(ROOT, "patchcore")}
    assert rows["`patchcore_1pct`"]["parameters"].endswith("coreset_ratio: 0.01")
    assert rows["`patchcore_1pct`, cpu"]["backbone"] == "efficientnet_lite0"
    assert " + " in rows["`patchcore_ensemble`"]["backbone"]


def test_page() -> None:
    text = page(ROOT, ROOT / "algorithms/patchcore.py")
    assert "# PatchCore\n\n*The distance to the nearest normal patch.*" in text
    assert "\n## Differences from the paper and its code\n" in text
    assert "| `coreset_ratio`" in text


def test_publication_values_stand_beside_visionads() -> None:
    text = beside_visionad(ROOT)
    rows = read_yaml(ROOT / VISIONAD)
    # The paper's Table 2 has 16 algorithms; `random` is the benchmark's own.
    assert len(rows) == 17
    for name, row in rows.items():
        section = text.split(f"\n## [{name}](")[1].split("\n## ")[0]
        config = read_config(ROOT / "params" / "algorithms", name)
        assert f"| ours     | {config.get('epochs', 1)} " in section
        assert row["difference"] in section
    assert "coreset_ratio: 0.1" in text.split("## [patchcore]")[1].split("\n## ")[0]
