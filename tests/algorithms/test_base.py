"""The registry, and the parts of the contract that no single algorithm owns."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import algorithms.base
from algorithms.base import Batch, Context, GradientAlgorithm, Prediction, create, names, register
from stages.trainer import Checkpoint, Progress, train

CONTEXT = Context((8, 8), ((3, 8, 8),), 4, 0, torch.device("cpu"))


class Linear(GradientAlgorithm):
    """The least that trains: a layer, drawn towards zero."""

    inputs = "images"
    primary = ("map", "score")

    def __init__(self) -> None:
        super().__init__(None, CONTEXT)
        torch.manual_seed(0)
        self.network = nn.Linear(3, 2)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)

    def loss(self, batch: Batch) -> Tensor:
        return self.network(batch[0]).square().mean()  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> Prediction:
        raise NotImplementedError


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A registry that forgets what a test puts into it."""
    copy = dict(algorithms.base._REGISTRY)
    monkeypatch.setattr(algorithms.base, "_REGISTRY", copy)
    return copy


def test_every_algorithm_registers_under_its_files_name() -> None:
    assert {"fastflow2d", "padim", "patchcore", "random", "reverse_distillation"} <= set(names())
    for name in names():
        module = importlib.import_module(f"algorithms.{name}")
        assert algorithms.base._REGISTRY[name].__module__ == module.__name__


def test_names_are_those_of_the_files_with_a_registration() -> None:
    stems = {path.stem for path in Path(algorithms.base.__file__).parent.glob("*.py")}
    assert set(names()) <= stems - {"base", "__init__"}
    assert names() == sorted(names())


def test_unknown_name() -> None:
    with pytest.raises(LookupError, match=r"unknown algorithm nope; known: .*padim"):
        create("nope", {}, CONTEXT)


def test_unknown_hyperparameter() -> None:
    with pytest.raises(TypeError, match="nope"):
        create("padim", {"nope": 1}, CONTEXT)


def test_name_taken_twice(registry: dict[str, Any]) -> None:
    importlib.import_module("algorithms.padim")
    registry["padim"] = create("padim", {}, CONTEXT).__class__
    with pytest.raises(ValueError, match="two algorithms"):
        register("padim")(Linear)


def test_name_other_than_the_files(registry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must live in algorithms/elsewhere\.py"):
        register("elsewhere")(Linear)


def test_loss_of_an_epoch_is_the_mean_over_images() -> None:
    algorithm = Linear()
    algorithm.optimizer = torch.optim.SGD(algorithm.network.parameters(), lr=0.0)
    images = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    uneven: Any = [[images[:4]], [images[4:]]]
    losses = algorithm.train_one_epoch(uneven)
    assert losses["loss"] == pytest.approx(algorithm.loss([images]).item())


def test_optimiser_goes_on_where_it_was(tmp_path: Path) -> None:
    """Moments and step counts survive the file, so the next step is the same."""
    loader: Any = [[torch.ones(2, 3)]]
    straight, stopped, resumed = Linear(), Linear(), Linear()
    for _ in range(2):
        straight.train_one_epoch(loader)
    stopped.train_one_epoch(loader)
    stopped.save(tmp_path)
    algorithms.base.save_tensors(stopped.training_state(), tmp_path / "training.safetensors")
    resumed.load(tmp_path)
    resumed.load_training_state(load_file(tmp_path / "training.safetensors"))
    resumed.train_one_epoch(loader)
    for key, value in straight.state().items():
        assert torch.equal(value, resumed.state()[key]), key


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "view": whole[:, ::2], "turned": whole.T}
    algorithms.base.save_tensors(tensors, tmp_path / "model.safetensors")
    for key, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(value, tensors[key])


class Noisy(Linear):
    """Draws from all three generators while it trains."""

    def loss(self, batch: Batch) -> Tensor:
        noise = torch.rand(()) + np.random.rand() + random.random()
        return super().loss([batch[0][..., :3] + noise])


def test_resumed_epochs_draw_the_same_numbers(image_toy: Any, tmp_path: Path) -> None:
    def run(algorithm: Noisy, epochs: int, checkpoint: Checkpoint) -> Progress:
        parameters = {"epochs": epochs, "batch_size": 4, "seed": 0, "train_seconds": None}
        return train(algorithm, image_toy.train, parameters, checkpoint, progress_bar=False)

    straight, stopped, resumed = Noisy(), Noisy(), Noisy()
    run(straight, 3, Checkpoint(tmp_path / "none", ""))
    checkpoint = Checkpoint(tmp_path / "checkpoint", "")
    checkpoint.save(stopped, run(stopped, 2, checkpoint))
    torch.rand(5), np.random.rand(5), random.random()  # another process, in another state
    assert run(resumed, 3, checkpoint).resumed == 1
    for key, value in straight.state().items():
        assert torch.equal(value, resumed.state()[key]), key
