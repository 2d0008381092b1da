"""The notebook: it runs, in a copy of the repository, and what it saves the plan picks up."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from notebooks.execute import copy_repository, execute
from params.hyperparameters import declaration
from workflow.describe import sections
from workflow.job import ROOT
from workflow.plan import Plan

NOTEBOOK = ROOT / "notebooks" / "new_algorithm.ipynb"
SMALLER = {
    "datasets/demo.yaml": {"train_good": 12, "test_good": 4, "per_defect": 2},
    "benchmark.yaml": {"protocol": {"image_size": 128, "evaluation_size": 128}},
}


def texts(notebook: Any) -> str:
    """All that cells put out as text."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return "\n".join(
        [
            out["text"] if out.output_type == "stream" else out.data["text/plain"]
            for out in outputs
            if out.output_type in ("stream", "execute_result")
        ]
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the repository; its demo has fewer and smaller images."""
    root = tmp_path_factory.mktemp("notebook") / "repository"
    copy_repository(root)
    for name, changes in SMALLER.items():
        path = root / "params" / name
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, value in changes.items():
            both = isinstance(value, dict)
            data[key] = {**data[key], **value} if both else value
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def executed(copy: Path) -> Any:
    """Run the notebook there: a cell that fails is an error here."""
    return execute(NOTEBOOK, copy)


@pytest.mark.slow
def test_what_it_shows(executed: Any) -> None:
    said = texts(executed)
    assert "nearest_patch: 12 tests passed, 0 failed" in said
    coin = said[said.index("coin: ") : said.index("line 5 of the cell of Homeless")]
    assert "prediction does not depend on the batch (1): Not equal to tolerance" in coin
    rows = re.findall(r"^(\w+) +([\d.]+) +([\d.]+)", said, re.MULTILINE)
    pixels = {name: float(pixel) for name, _, pixel in rows}
    assert {"coin", "mean_distance", "nearest_patch", "patchcore"} <= set(pixels)
    assert 0.45 < pixels["coin"] < 0.55
    assert pixels["nearest_patch"] > 0.8, "it has learned something"
    kinds = [
        kind
        for cell in executed.cells
        for out in cell.get("outputs", ())
        for kind in out.get("data", ())
    ]
    assert kinds.count("image/jpeg") == 3
    assert kinds.count("image/png") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("executed")
def test_what_it_saves_is_part_of_the_benchmark(copy: Path) -> None:
    source = copy / "algorithms" / "nearest_patch.py"
    assert declaration(source).inputs == "features"
    found = sections(ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "")
    assert found["Verified"], "it has a page (workflow/describe.py)"
    assert not (ROOT / "algorithms" / "nearest_patch.py").exists(), "it ran in the copy"
    command = [sys.executable, "-m", "ruff", "check", str(source.relative_to(copy))]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    plan = Plan(copy, {"algorithms": ["nearest_patch"]})
    states = {name: name in plan.restorable for name in plan.jobs if "nearest_patch/demo/" in name}
    for stage in ("train", "predict", "evaluate"):
        assert states[f"{stage}/nearest_patch/demo/flange/seed0"], "the notebook's is taken over"
        assert not states[f"{stage}/nearest_patch/demo/kit/seed0"], "still to be made"


def test_committed_outputs_are_whole_small_and_of_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [out for cell in code for out in cell.outputs]
    assert "error" not in {out.output_type for out in outputs}
    assert not re.search(r"/(home|root|tmp|work)/", json.dumps([cell.outputs for cell in code]))
    pictures = [out for out in outputs if {"image/jpeg", "image/png"} & {*out.get("data", ())}]
    assert len(pictures) == 4
    for picture in pictures:
        (metadata,) = picture.metadata.values()
        assert "flange" in metadata["alt"] or "image_auroc" in metadata["alt"]
