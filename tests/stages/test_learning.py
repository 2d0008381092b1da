"""Measuring while learning: legs go on from each other, and the last is an ordinary training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from params.reading import ParamsError
from stages.artifacts.files import read_json
from stages.learning import draw
from tests.workflow.mini_repository import Repository, do, make_repository

FLOW = {
    "algorithm": "fastflow2d",
    "backbone": "tiny",
    "layers": ["stride8"],
    "epochs": 4,
    "batch_size": 6,
    "parameters": {"flow_steps": 1},
}
RUN = "fastflow2d/folder/bolt/seed0"
PRESET = {"algorithms": ["fastflow2d"], "learning_epochs": [1, 2, 4], "metrics": ["aupro", "pl"]}
FEATURES = ("index/folder/bolt", "features/tiny/folder/bolt")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Copy the repository, with one category and a small flow to learn it; work inside."""
    repository = make_repository(tmp_path / "repository", categories=["bolt"])
    repository.write("algorithms/fastflow2d.yaml", FLOW)
    repository.edit("presets/tiny.yaml", **PRESET)
    monkeypatch.chdir(repository.root)
    return repository


def test_the_last_leg_is_an_ordinary_training(repository):
    plan = repository.write_plan()
    assert f"learning/{RUN}" in plan.jobs
    do(*FEATURES, *(f"{stage}/{RUN}" for stage in ("train", "predict", "evaluate", "learning")))
    folder = Path("results/figures/folder/learning/fastflow2d/bolt/seed0")
    table = pd.read_csv(folder / "learning.csv")
    assert list(table["epochs"]) == [1, 2, 4]
    for metric in PRESET["metrics"]:
        record = read_json(Path(f"results/metrics/{RUN}/{metric}.json"))["values"][0]
        assert record["defect_type"] == "all" and record["primary"]
        assert table[metric].iloc[-1] == pytest.approx(record["value"], abs=1e-12)
    assert table["aupro"].nunique() == 3
    assert table["train_seconds"].is_monotonic_increasing
    assert (folder / "learning.svg").stat().st_size > 5000
    assert "from 1 to 4 epochs: aupro from" in (folder / "learning.txt").read_text()
    assert repository.plan().valid[f"learning/{RUN}"]


def test_what_is_fitted_in_one_epoch_is_refused_by_the_plan(repository):
    repository.edit("presets/tiny.yaml", algorithms=["padim"])
    with pytest.raises(ParamsError, match="learning_epochs: padim is fitted in one epoch"):
        repository.plan()


def test_it_is_made_only_when_asked_for(repository):
    jobs = repository.plan(learning_epochs=[]).jobs
    assert not [name for name in jobs if name.startswith("learning")]
    shown = repository.plan().targets()
    assert "results/figures/folder/learning/fastflow2d/bolt/seed0.provenance.json" in shown


def test_names_at_the_ends_of_lines_do_not_overlap():
    table = pd.DataFrame(
        {"epochs": [1, 2], "a": [0.2, 0.9], "b": [0.3, 0.901], "c": [0.1, float("nan")]}
    )
    (axes,) = draw(table, ["a", "b", "c"], "T").axes
    assert [text.get_text() for text in axes.texts] == ["a 0.900", "b 0.901"]
    first, second = (text.xy[1] for text in axes.texts)
    assert second - first >= 0.04 * (axes.get_ylim()[1] - axes.get_ylim()[0])
