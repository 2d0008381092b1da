"""Replicates: of the metric's own value, the same images for all, kept while only others change."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.artifacts.files import StageError, read_json
from stages.artifacts.resampled import (
    Replicates,
    ResampledRun,
    read_resampled,
    write_resampled,
)
from tests.workflow.mini_repository import Repository, do, make_repository
from visionad_metrics import Samples, bootstrap

METRICS = ["image_auroc", "pixel_auroc", "aupro", "pl", "pixel_ap"]
RUNS = [f"{name}/folder/bolt/seed0" for name in ("random", "padim")]
STAGES = ("train", "predict", "evaluate", "resample")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Evaluate and resample two algorithms on one category. Not to be changed."""
    repository = make_repository(tmp_path_factory.mktemp("resample") / "repository", ["bolt"])
    repository.edit("presets/tiny.yaml", metrics=METRICS)
    repository.edit("comparison.yaml", resamples=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.root)
        repository.write_plan()
        do("index/folder/bolt", "features/tiny/folder/bolt")
        do(*(f"{stage}/{run}" for run in RUNS for stage in STAGES))
    return repository


@pytest.fixture
def repository(finished: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Copy the finished one, and work inside."""
    copy = Repository(tmp_path / "copy")
    shutil.copytree(finished.root, copy.root)
    monkeypatch.chdir(copy.root)
    return copy


def replicates(run: str, root: Path = Path()) -> ResampledRun:
    return read_resampled(root / f"results/resampled/{run}.h5")


@pytest.mark.parametrize("run", RUNS)
def test_the_point_value_is_the_metrics_own(run, finished):
    found = replicates(run, finished.root)
    assert (found.good_images, found.defective_images) == (4, 8)
    assert set(found.metrics) == set(METRICS)
    for name, one in found.metrics.items():
        (record,) = [
            value
            for value in read_json(finished.root / f"results/metrics/{run}/{name}.json")["values"]
            if value["primary"] and value["defect_type"] == "all"
        ]
        if name == "pixel_ap":
            assert math.isnan(one.value) and not one.values.size
            assert one.reason == "no bootstrap is known for pixel_ap"
        else:
            assert one.value == pytest.approx(record["value"], abs=1e-12)
            assert one.values.shape == (200,) and one.reason is None
            assert one.influence.shape == (12,)


def test_all_algorithms_meet_the_same_images(repository, monkeypatch):
    drawn = []
    original = bootstrap.resample
    monkeypatch.setattr(
        "stages.resample.resample",
        lambda samples, metric, parameters, weights: (
            drawn.append(weights) or original(samples, metric, parameters, weights)
        ),
    )
    for run in RUNS:
        Path(f"results/resampled/{run}.h5").unlink()
        do(f"resample/{run}")
    assert len(drawn) == 2 * len(METRICS)
    assert all((weights == drawn[0]).all() for weights in drawn)


def test_the_same_job_gives_the_same_bytes(repository):
    path = Path(f"results/resampled/{RUNS[0]}.h5")
    before = path.read_bytes()
    path.unlink()
    do(f"resample/{RUNS[0]}")
    assert path.read_bytes() == before


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Metrics that are resampled from now on."""
    names: list[str] = []
    original = bootstrap.resample

    def noting(samples: Samples, metric: str, *rest: object) -> bootstrap.Resampled:
        names.append(metric)
        return original(samples, metric, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("stages.resample.resample", noting)
    return names


class TestIncremental:
    def again(self, repository: Repository) -> None:
        plan = repository.write_plan()
        assert not plan.valid[f"resample/{RUNS[1]}"]
        do(f"resample/{RUNS[1]}")
        assert repository.plan().valid[f"resample/{RUNS[1]}"]

    def test_a_metrics_parameter(self, repository, computed):
        before = replicates(RUNS[1]).metrics
        repository.edit("metrics.yaml", parameters={"pl": {"iou_limit": 0.9}})
        self.again(repository)
        after = replicates(RUNS[1]).metrics
        assert computed == ["pl"]
        assert (after["pl"].values != before["pl"].values).any()
        assert (after["aupro"].values == before["aupro"].values).all()

    def test_a_metric_more_and_one_less(self, repository, computed):
        repository.edit("presets/tiny.yaml", metrics=["image_ap", "aupro"])
        self.again(repository)
        assert computed == ["image_ap"]
        assert set(replicates(RUNS[1]).metrics) == {"image_ap", "aupro"}

    def test_the_seed_of_the_draws(self, repository, computed):
        before = replicates(RUNS[1]).metrics["aupro"].values
        repository.edit("comparison.yaml", seed=1)
        self.again(repository)
        assert sorted(computed) == sorted(METRICS)
        assert (replicates(RUNS[1]).metrics["aupro"].values != before).any()

    def test_a_damaged_file_is_made_anew(self, repository, computed):
        path = Path(f"results/resampled/{RUNS[1]}.h5")
        path.write_bytes(path.read_bytes()[:1000])
        self.again(repository)
        assert sorted(computed) == sorted(METRICS)

    def test_confidence_and_level_resample_nothing(self, repository):
        before = repository.plan().valid[f"resample/{RUNS[1]}"]
        repository.edit("comparison.yaml", confidence=0.9, alpha=0.1)
        assert before and repository.plan().valid[f"resample/{RUNS[1]}"]


def test_maps_of_other_images_are_refused(repository):
    from stages.artifacts.maps import read_info, read_maps, read_scores, write_maps

    path = Path(f"results/maps/{RUNS[0]}.h5")
    info = read_info(path)
    maps = {name: read_maps(path, name) for name in info.map_methods}
    scores = {name: read_scores(path, name) for name in info.score_methods}
    ids = ["test/good/other", *info.ids[1:]]
    write_maps(path, ids, maps, scores, (info.primary_map, info.primary_score))
    with pytest.raises(StageError, match="not those of the index, e.g. test/good/"):
        do(f"resample/{RUNS[0]}")


def test_what_is_written_is_read(tmp_path):
    key = {"algorithm": "a", "dataset": "d", "category": "c", "seed": "seed3"}
    metrics = {
        "pl": Replicates(0.5, np.array([0.25, 0.75]), np.array([-0.1, 0.1]), None, "f"),
        "spro": Replicates(math.nan, np.empty(0), np.empty(0), "no bootstrap", "g"),
    }
    path = tmp_path / "seed3.h5"
    write_resampled(path, ResampledRun(key, 2, 3, metrics))
    found = read_resampled(path)
    assert (found.key, found.good_images, found.defective_images) == (key, 2, 3)
    assert found.metrics["pl"].values.tolist() == [0.25, 0.75]
    assert found.metrics["pl"].influence.tolist() == [-0.1, 0.1]
    assert found.metrics["pl"].reason is None
    assert math.isnan(found.metrics["spro"].value) and not found.metrics["spro"].values.size
    assert found.metrics["spro"].reason == "no bootstrap"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StageError, match="truncated or damaged"):
        read_resampled(path)
