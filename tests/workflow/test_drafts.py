"""Drafts: from a notebook's cell to a file and its configuration."""

import ast
import linecache
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from params.hyperparameters import declaration
from params.reading import ParamsError
from workflow.drafts import Draft, DraftError, as_file, draft, save
from workflow.job import ROOT

CELL = '''"""Loudness: bright is bad."""

from collections.abc import Mapping
from dataclasses import dataclass
import torch
from torch import Tensor
from algorithms.base import Prediction, Algorithm, Batch, Loader

SCALE = 2.0

@dataclass(frozen=True)
class Hyperparameters:
    """Of the map."""

    gain: float = 1.0

class LoudPixels(Algorithm):
    """The mean over channels."""

    inputs = "images"
    primary = ("loud", "loud")

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        return {}

    def predict(self, batch: Batch) -> Prediction:
        maps = SCALE * self.parameters.gain * batch[0].mean(dim=1)
        return Prediction({"loud": maps}, {"loud": maps.amax(dim=(1, 2))})

    def state(self) -> dict[str, Tensor]:
        return {"seed": torch.tensor(self.context.seed)}

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...
'''


def run_cell(text: str, cls: str = "LoudPixels") -> Any:
    """Run a cell as IPython does, and return a class that it defines."""
    name = f"<cell {abs(hash(text))}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), namespace)
    return namespace[cls]


def definitions(source: str) -> dict[str, str]:
    """Classes and functions of a module, without their decorators."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            node.decorator_list = []
            found[node.name] = ast.dump(node)
    return found


def test_cell_becomes_a_file_that_the_plan_reads(tmp_path: Path) -> None:
    made = draft(run_cell(CELL), parameters={"gain": 3.0}, batch_size=4)
    made.write(tmp_path)
    declared = declaration(tmp_path / "algorithms" / "loud_pixels.py")
    assert (declared.name, declared.inputs) == ("loud_pixels", "images")
    assert declared.hyperparameters().model_dump() == {"gain": 1.0}
    text = (tmp_path / "params" / "algorithms" / "loud_pixels.yaml").read_text()
    assert yaml.safe_load(text) == {
        "algorithm": "loud_pixels",
        "parameters": {"gain": 3.0},
        "batch_size": 4,
    }
    assert text.startswith("# yaml-language-server: $schema=../../workflow/schemas/algorithms/")


def test_file_is_the_cell_and_its_registration() -> None:
    source = draft(run_cell(CELL)).source
    assert definitions(source) == definitions(CELL)
    assert ast.get_docstring(ast.parse(source)) == "Loudness: bright is bad."
    assert '@register("loud_pixels")\nclass LoudPixels(Algorithm):' in source
    assert "SCALE = 2.0" in source


@pytest.mark.parametrize("imports", ["Algorithm", "Algorithm, register"])
def test_register_is_imported_once(imports: str) -> None:
    source = as_file(f"from algorithms.base import {imports}\nclass A(Algorithm): ...\n", "A", "a")
    imported = [
        alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(imported) == ["Algorithm", "register"]


def test_file_is_as_lint_wants_it() -> None:
    source = draft(run_cell(CELL)).source
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--stdin-filename", "algorithms/loud.py", "-"],
            input=source, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "more", ["print(1)", "for i in range(3):\n    pass", "LoudPixels", "if True:\n    x = 1"]
)
def test_cell_that_does_more_than_to_define_is_refused(more: str) -> None:
    cls = run_cell(f"{CELL}\n\n{more}\n")
    line = len(CELL.splitlines()) + 3
    with pytest.raises(DraftError, match=f"line {line} of the cell .*{more.split()[0][:3]}"):
        draft(cls)


def test_class_without_a_cell_is_refused() -> None:
    with pytest.raises(DraftError, match="Ghost: its source is not to be found"):
        draft(type("Ghost", (), {}))


def test_unknown_setting_is_named() -> None:
    with pytest.raises(ParamsError, match="layer: unknown key; did you mean layers"):
        draft(run_cell(CELL), layer=["stride8"])


@pytest.mark.parametrize(
    ("cls", "name"), [("LoudPixels", "loud_pixels"), ("Padim2D", "padim2_d"), ("SPADE", "spade")]
)
def test_name_follows_from_the_class(cls: str, name: str) -> None:
    assert draft(run_cell(CELL.replace("LoudPixels", cls), cls)).name == name


def test_saving_says_what_to_do_and_overwrites_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "benchmark.yaml").write_text("algorithms: [random, padim]\n")
    made = Draft("loud", "first", "algorithm: loud\n")
    said = save(made, tmp_path)
    assert "snakemake --config algorithms='[random, padim, loud]'" in said
    assert (tmp_path / "algorithms" / "loud.py").read_text() == "first"
    with pytest.raises(DraftError, match=r"algorithms/loud\.py is there"):
        save(Draft("loud", "second", "algorithm: loud\n"), tmp_path)
    assert (tmp_path / "algorithms" / "loud.py").read_text() == "first"
    save(Draft("loud", "second", "algorithm: loud\n"), tmp_path, overwrite=True)
    assert (tmp_path / "algorithms" / "loud.py").read_text() == "second"
