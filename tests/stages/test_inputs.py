"""What algorithms read: one backbone's features, several ones', and the networks they build on."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from stages.artifacts.features import FeatureWriter
from stages.artifacts.files import StageError, read_json
from stages.artifacts.job import read_job
from stages.command import Options
from stages.inputs import EnsembleReader
from tests.workflow.mini_repository import Repository, make_repository


def write(path: Path, ids: list[str], channels: int, side: int) -> np.ndarray:
    """Write one layer of random features, and return them."""
    shape = (len(ids), channels, side, side)
    values = np.random.default_rng(channels).normal(size=shape).astype(np.float16)
    with h5py.File(path, "w") as file:
        FeatureWriter(file, "train", ids, "float16").append({"stride8": values})
    return values


def test_ensemble_reads_backbone_after_backbone(tmp_path: Path) -> None:
    ids = ["a", "b", "c"]
    arrays = [write(tmp_path / f"{c}.h5", ids, c, 8 // c) for c in (2, 4)]
    paths = [tmp_path / f"{c}.h5" for c in (2, 4)]
    with EnsembleReader(paths, "train", ["stride8"]) as reader:
        assert len(reader) == 3
        assert reader.shapes == ((2, 4, 4), (4, 2, 2))
        rows = np.array([2, 0])
        for read, array in zip(reader.read(rows), arrays, strict=True):
            np.testing.assert_array_equal(read, array[rows].astype(np.float32))


def test_ensemble_of_other_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "2.h5", ["a", "b"], 2, 4)
    write(tmp_path / "4.h5", ["a", "c"], 4, 4)
    with pytest.raises(StageError, match=r"4\.h5: its images are not those of .*2\.h5"):
        EnsembleReader([tmp_path / "2.h5", tmp_path / "4.h5"], "train", ["stride8"])


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Copy the repository, with one category and a second backbone."""
    repository = make_repository(tmp_path / "repository", categories=["bolt"])
    other = {"extends": "tiny", "weights": {"source": "random", "seed": 5}}
    repository.write("backbones/other.yaml", other)
    return repository


def test_plan_of_an_ensemble(repository: Repository) -> None:
    repository.edit("algorithms/padim.yaml", backbone=["tiny", "other"])
    plan = repository.plan()
    train = plan.jobs["train/padim/folder/bolt/seed0"]
    paths = [f"results/features/{name}/folder/bolt.h5" for name in ("tiny", "other")]
    assert train.inputs["features"] == paths
    above = {job.name for job in train.upstream}
    assert above == {f"features/{name}/folder/bolt" for name in ("tiny", "other")}
    before = train.fingerprint
    repository.edit("backbones/other.yaml", weights={"source": "random", "seed": 6})
    assert repository.plan().jobs[train.name].fingerprint != before


def test_plan_of_what_builds_on_a_backbone(repository: Repository) -> None:
    """It depends on the network's code and weights; features are not computed for it."""
    kernels = [[2, 3], [2, 3]]
    repository.write(
        "algorithms/mspba.yaml",
        {
            "algorithm": "mspba",
            "backbone": "tiny",
            "layers": ["stride4", "stride8"],
            "parameters": {"patch_sizes": [16, 32], "steps": [8, 8], "kernels": kernels, "widths": [[8, 8]] * 2},
        },
    )  # fmt: skip
    repository.edit("presets/tiny.yaml", algorithms=["random", "mspba"])
    plan = repository.plan()
    assert not [name for name in plan.jobs if name.startswith("features")]
    builds, plain = (plan.jobs[f"train/{one}/folder/bolt/seed0"] for one in ("mspba", "random"))
    assert "stages.backbone" in builds.program.modules
    assert "stages.backbone" not in plain.program.modules
    assert builds.parameters["mean"] == (0.5, 0.5, 0.5)
    assert "weights" in builds.data
    before = builds.fingerprint, plain.fingerprint
    repository.edit("backbones/tiny.yaml", weights={"source": "random", "seed": 6})
    jobs = repository.plan().jobs
    assert jobs[builds.name].fingerprint != before[0]
    assert jobs[plain.name].fingerprint == before[1]


def test_features_too_many_for_memory_train_to_the_end(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.root)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0))
    plan = repository.plan()
    name = "train/padim/folder/bolt/seed0"
    for job in ("index/folder/bolt", "features/tiny/folder/bolt", name):
        file = repository.root / f"{job}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(plan.jobs[job].text("cpu", None))
        stage = job.split("/")[0]
        module = importlib.import_module(f"stages.{stage}")
        module.body(read_job(file, stage), Options(1, "cpu", False))
    training = read_json(repository.root / plan.jobs[name].outputs["training"])
    assert training["shapes"] == [[64, 16, 16], [128, 8, 8]]


@pytest.mark.slow
def test_it_runs_as_a_pipeline(repository: Repository) -> None:
    """An ensemble of features and an algorithm on a network, from images to the leaderboard."""
    self_made = {"patch_sizes": [16, 32], "steps": [8, 16], "kernels": [[2, 3], [2, 3]], "widths": [[8, 8]] * 2, "samples": 4, "draws_per_image": 1}  # fmt: skip
    repository.write(
        "algorithms/mspba.yaml",
        {"algorithm": "mspba", "backbone": "tiny", "layers": ["stride4", "stride8"], "parameters": self_made},
    )  # fmt: skip
    repository.write(
        "algorithms/patchcore_pair.yaml",
        {"algorithm": "patchcore", "backbone": ["tiny", "other"], "layers": ["stride4", "stride8"],
         "parameters": {"pretrain_dimension": None, "target_dimension": None}},
    )  # fmt: skip
    repository.edit("presets/tiny.yaml", algorithms=["mspba", "patchcore_pair"])
    done = repository.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    table = (repository.root / "results/leaderboard/folder/leaderboard.md").read_text()
    assert "tiny + other" in table
    assert all(repository.plan().valid.values())
