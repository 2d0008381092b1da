"""Teachers, bases, images of elsewhere and held-out ones: from the plan to the algorithm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from params.reading import ParamsError
from stages.batches import held_out
from stages.teach import draws
from tests.workflow.mini_repository import Repository, make_repository, recolour

TEACHER = '''
"""A teacher that learns the mean of its images' pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algorithms.base import Teacher, register_teacher


@dataclass(frozen=True)
class Hyperparameters:
    rate: float = 0.1


@register_teacher("mean")
class Mean(Teacher):
    def __init__(self, parameters, context):
        super().__init__(parameters, context)
        self.network = nn.Module()
        self.network.mean = nn.Parameter(torch.zeros(()))
        self.network.register_buffer("seen", torch.zeros(()))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=parameters.rate)

    def prepare(self, loader):
        self.network.seen.fill_(sum(len(batch[0]) for batch in loader))

    def loss(self, images: Tensor) -> Tensor:
        return (images.mean() - self.network.mean) ** 2

    def published(self, weights):
        if set(weights) != {"their_mean"}:
            raise ValueError("no weights of a mean")
        return {"mean": weights["their_mean"], "seen": torch.zeros(())}
'''
NEEDY = '''
"""Needy: it notes what it got."""

from dataclasses import dataclass

import torch

from algorithms.base import Algorithm, Prediction, register


@dataclass(frozen=True)
class Hyperparameters:
    factor: float = 1.0


@register("needy")
class Needy(Algorithm):
    inputs = "images"
    primary = ("map", "score")
    needs = ("teacher", "outside", "textures", "validation")

    def __init__(self, parameters, context):
        super().__init__(parameters, context)
        self.notes = {"teacher": context.teacher["mean"].clone()}

    def train_one_epoch(self, loader):
        outside, textures = self.context.outside, self.context.textures
        self.notes |= {
            "trained": torch.tensor(sum(len(batch[0]) for batch in loader)),
            "outside": torch.tensor(len(outside)),
            "pixel": outside.read([0, len(outside) - 1])[:, :, 0, 0],
            "textures": torch.tensor(0 if textures is None else len(textures)),
        }
        return {}

    def calibrate(self, loader):
        self.notes["calibrated"] = torch.tensor(sum(len(batch[0]) for batch in loader))

    def predict(self, batch):
        scores = batch[0].amax(dim=(1, 2, 3)) * self.parameters.factor
        return Prediction({"map": batch[0].mean(dim=1)}, {"score": scores})

    def state(self):
        return self.notes

    def load_state(self, state):
        self.notes = dict(state)
'''
CROWNED = '''
"""Crowned: it builds upon another."""

from dataclasses import dataclass

import torch

from algorithms.base import Algorithm, Prediction, register


@dataclass(frozen=True)
class Hyperparameters:
    pass


@register("crowned")
class Crowned(Algorithm):
    inputs = "images"
    primary = ("map", "score")
    needs = ("base",)

    def train_one_epoch(self, loader):
        return {}

    def predict(self, batch):
        return self.context.base.predict(batch)

    def state(self):
        return {"teacher": self.context.base.notes["teacher"].clone()}

    def load_state(self, state):
        assert torch.equal(state["teacher"], self.context.base.notes["teacher"])
'''
MODEL = "results/models/{}/folder/{}/seed0/model/model.safetensors"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Copy the repository, with algorithms that need everything."""
    repository = make_repository(tmp_path / "repository")
    folder = repository.root / "algorithms"
    (folder / "teachers").mkdir(exist_ok=True)
    (folder / "teachers" / "__init__.py").touch()
    (folder / "teachers" / "mean.py").write_text(TEACHER)
    (folder / "needy.py").write_text(NEEDY)
    (folder / "crowned.py").write_text(CROWNED)
    (repository.root / "params" / "teachers").mkdir(exist_ok=True)
    teacher = {"teacher": "mean", "image_size": 64, "steps": 120, "batch_size": 5}
    repository.write("teachers/mean.yaml", teacher)
    needy = {"algorithm": "needy", "teacher": "mean", "validation": 0.25}
    repository.write("algorithms/needy.yaml", needy)
    repository.write("algorithms/crowned.yaml", {"algorithm": "crowned", "base": "needy"})
    # Not the demo's images, which take long to draw.
    repository.edit(
        "presets/tiny.yaml", algorithms=["needy"], pretraining_images="data/parts/nut/train"
    )
    return repository


def refused(repository: Repository) -> str:
    with pytest.raises(ParamsError) as error:
        repository.plan()
    return str(error.value)


def test_held_out_images_are_a_fixed_share() -> None:
    kept, held = held_out(40, 0.1)
    assert len(held) == 4
    assert sorted([*kept, *held]) == list(range(40))
    assert len(held_out(5, 0.01)[1]) == 1


def test_draws_are_permutations_one_after_the_other() -> None:
    rows = draws(4, 10, 0, 0)
    assert sorted(rows[:4]) == sorted(rows[4:8]) == [0, 1, 2, 3]
    assert len(rows) == 10
    assert not np.array_equal(rows, draws(4, 10, 0, 1))
    assert not np.array_equal(rows, draws(4, 10, 1, 0))


class TestPlan:
    def test_teacher_is_made_once_of_all_training_images_and_the_demo(
        self, repository: Repository
    ) -> None:
        repository.edit("presets/tiny.yaml", pretraining_images=None)
        jobs = repository.plan().jobs
        teach = jobs["teach/mean"]
        own = [f"results/index/folder/{category}.parquet" for category in ("bolt", "nut")]
        demo = [f"results/index/demo/{name}.parquet" for name in ("weave", "flange", "kit")]
        assert sorted(teach.inputs["index"]) == sorted([*own, *demo])
        train = jobs["train/needy/folder/bolt/seed0"]
        assert teach in train.upstream
        # A category's own images are not images of elsewhere.
        assert own[0] not in train.inputs["outside"]
        assert len(train.inputs["outside"]) == 4
        assert train.parameters["outside_folders"][0] == "data/parts/nut"
        predict = jobs["predict/needy/folder/bolt/seed0"]
        assert "outside" not in predict.inputs
        assert "validation" not in predict.parameters
        assert predict.inputs["teacher"] == ["results/teachers/mean/model"]

    def test_who_needs_nothing_depends_on_none_of_it(self, repository: Repository) -> None:
        repository.edit("presets/tiny.yaml", algorithms=["random"], pretraining_images=None)
        jobs = repository.plan().jobs
        assert not [name for name in jobs if name.startswith(("teach", "demo_data"))]

    def test_what_an_edit_makes_stale(self, repository: Repository) -> None:
        repository.edit("presets/tiny.yaml", algorithms=["random", "needy", "crowned"])

        def prints() -> dict[str, str]:
            return {job.name: job.fingerprint for job in repository.plan().jobs.values()}

        def changed(before: dict[str, str], stage: str) -> set[str]:
            after = prints()
            assert before.keys() == after.keys()
            return {name for name in after if after[name] != before[name] and stage in name}

        before = prints()
        repository.edit("teachers/mean.yaml", parameters={"rate": 0.2})
        of_needy = {f"train/{a}/folder/{c}/seed0" for a in ("needy", "crowned")
                    for c in ("bolt", "nut")}  # fmt: skip
        assert changed(before, "train") == of_needy
        before = prints()
        repository.edit("algorithms/needy.yaml", parameters={"factor": 2.0})
        assert changed(before, "train") == of_needy
        assert changed(before, "teach") == set()
        before = prints()
        recolour(repository.images / "nut" / "test" / "good" / "000.png")
        assert changed(before, "teach") == set()
        assert changed(before, "train/") == set()
        # Of a folder of pretraining images, names and sizes count.
        path = repository.images / "nut" / "train" / "good" / "000.png"
        path.rename(path.with_name("a.png"))
        assert changed(before, "teach") == {"teach/mean"}

    def test_bad_configurations_are_named(self, repository: Repository) -> None:
        repository.write("algorithms/needy.yaml", {"algorithm": "needy"})
        assert "needy.yaml: needy needs the key teacher" in refused(repository)
        repository.write("algorithms/needy.yaml", {"algorithm": "needy", "teacher": "men"})
        assert "men: no file" in refused(repository)
        repository.write("algorithms/needy.yaml", {"algorithm": "needy", "teacher": "mean"})
        repository.edit("teachers/mean.yaml", steps=0)
        assert "give steps to train, or steps: 0 and a file of weights" in refused(repository)
        repository.edit("teachers/mean.yaml", steps=0, weights="nowhere.safetensors")
        assert "nowhere.safetensors is not there" in refused(repository)
        repository.edit("teachers/mean.yaml", steps=5, weights=None, teacher="mode")
        assert "teacher: mode: no" in refused(repository)
        repository.edit("teachers/mean.yaml", teacher="mean", backbone="tiny")
        assert "mean.yaml: give both backbone and layers, or neither" in refused(repository)
        repository.edit("teachers/mean.yaml", backbone=None)
        repository.write("algorithms/random.yaml", {"algorithm": "random", "teacher": "mean"})
        repository.edit("presets/tiny.yaml", algorithms=["random"])
        assert "random.yaml: teacher: random does not use it" in refused(repository)
        repository.edit("presets/tiny.yaml", algorithms=["needy"], pretraining_images="nowhere")
        assert "pretraining_images: " in refused(repository)
        repository.edit("presets/tiny.yaml", algorithms=["crowned"])
        repository.write("algorithms/crowned.yaml", {"algorithm": "crowned", "base": "padim"})
        assert "padim does not read the same images" in refused(repository)


@pytest.mark.slow
def test_it_runs_as_a_pipeline(repository: Repository) -> None:
    repository.edit("presets/tiny.yaml", algorithms=["crowned"], textures="data/parts/bolt/test")
    done = repository.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(repository.plan().valid.values())
    # The teacher has learned the mean of its 12 images, once for both categories.
    state = load_file(repository.root / "results/teachers/mean/model/model.safetensors")
    notes = [load_file(repository.root / MODEL.format("needy", c)) for c in ("bolt", "nut")]
    assert state["seen"] == 12
    assert state["mean"] != 0
    for note in notes:
        assert note["teacher"] == state["mean"]
        assert (note["trained"], note["calibrated"], note["outside"]) == (9, 3, 12)
        assert note["textures"] == 12
        assert note["pixel"].shape == (2, 3)
    told = json.loads((repository.root / "results/teachers/mean/training.json").read_text())
    assert told["image_folders"] == ["data/parts/nut/train"]
    assert (told["images"], told["steps"], len(told["losses"])) == (12, 120, 3)
    assert told["losses"][-1] < told["losses"][0]
    # Published weights take the place of training.
    theirs = repository.root / "theirs.safetensors"
    save_file({"their_mean": np.array(0.5, np.float32)}, theirs)
    repository.edit("teachers/mean.yaml", steps=0, weights="theirs.safetensors")
    done = repository.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_file(repository.root / MODEL.format("crowned", "nut"))["teacher"] == 0.5
    save_file({"other": np.array(0.5, np.float32)}, theirs)
    done = repository.snakemake()
    assert done.returncode != 0
    log = (repository.root / "results/logs/teach/mean.log").read_text()
    assert "theirs.safetensors: no weights of a mean" in log
