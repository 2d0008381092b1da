"""The training loop: seeds, budget, divergence, and checkpoints that change no result."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.base import Context, GradientAlgorithm, Prediction
from stages import trainer
from stages.artifacts.files import StageError
from stages.batches import BatchLoader, epoch_order
from stages.devices import prepare, seed_everything
from stages.trainer import Checkpoint, Progress, train

COUNT = 12


@contextmanager
def killed_while_deleting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the block when it deletes a checkpoint's folder, half of it gone."""

    def half(folder, *arguments, **options):
        (Path(folder) / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            yield


@dataclass(frozen=True)
class Hyperparameters:
    """Of the algorithm below."""

    rate: float = 0.01


class Learner(GradientAlgorithm):
    """A small network with dropout: its result shows every seed, batch and optimiser moment."""

    inputs = "features"
    primary = ("map", "score")

    def __init__(self, context: Context) -> None:
        super().__init__(Hyperparameters(), context)
        self.network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 4))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        self.batches: list[list[float]] = []
        self.before: list[list[float]] = []
        self.noise: list[float] = []
        self.value = 0.0  # added to the loss
        self.stop_at: int | None = None

    def loss(self, batch):
        rows = batch[0].flatten(1)
        self.noise.append(random.random() + np.random.rand())
        return (self.network(rows) - rows).square().mean() + self.value

    def train_one_epoch(self, loader):
        if self.stop_at == len(self.batches):
            raise KeyboardInterrupt
        self.batches.append([float(row) for batch in loader for row in batch[0][:, 0, 0, 0]])
        return super().train_one_epoch(loader)

    def before_eval(self, loader):
        self.before.append([float(row) for batch in loader for row in batch[0][:, 0, 0, 0]])

    def predict(self, batch):
        return Prediction({}, {})


class Rows:
    """A reader of features whose first value is the row number."""

    shapes = ((4, 1, 1),)

    def __len__(self) -> int:
        return COUNT

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        table = np.arange(COUNT * 4, dtype=np.float32).reshape(4, COUNT).T.copy()
        table[:, 0] = np.arange(COUNT)
        return [table[rows].reshape(-1, 4, 1, 1)]


def learner() -> Learner:
    torch.manual_seed(7)
    return Learner(Context((8, 8), ((4, 1, 1),), COUNT, 7, torch.device("cpu")))


def run(algorithm: Learner, folder: Path, fingerprint: str = "FP", **changes: Any) -> Progress:
    parameters = {"epochs": 4, "batch_size": 5, "seed": 7, "train_seconds": None, **changes}
    checkpoint = Checkpoint(folder / "checkpoint", fingerprint)
    return train(algorithm, Rows(), parameters, checkpoint, progress_bar=False)


def weights(algorithm: Learner) -> torch.Tensor:
    return torch.cat([value.flatten() for value in algorithm.network.parameters()]).detach()


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a checkpoint after every epoch."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)


def interrupt(folder: Path, epoch: int, fingerprint: str = "FP") -> None:
    """Train until the beginning of an epoch."""
    algorithm = learner()
    algorithm.stop_at = epoch
    with pytest.raises(KeyboardInterrupt):
        run(algorithm, folder, fingerprint)


class TestSeeds:
    """Order and random numbers of an epoch are functions of (seed, epoch)."""

    def test_order(self):
        orders = {
            (seed, epoch): tuple(epoch_order(50, seed, epoch, shuffle=True))
            for seed in range(3)
            for epoch in range(3)
        }
        assert len(set(orders.values())) == 9
        assert all(sorted(order) == list(range(50)) for order in orders.values())
        np.random.seed(5)
        assert tuple(epoch_order(50, 2, 1, shuffle=True)) == orders[2, 1]
        np.testing.assert_array_equal(epoch_order(5, 3, 2, shuffle=False), range(5))

    def test_generators(self):
        def draw(seed: int, epoch: int) -> tuple[float, float, float]:
            seed_everything(seed, epoch)
            return random.random(), float(np.random.rand()), float(torch.rand(()))

        draws = {(seed, epoch): draw(seed, epoch) for seed in range(3) for epoch in range(3)}
        assert draws[1, 2] == draw(1, 2)
        for values in zip(*draws.values(), strict=True):
            assert len(set(values)) == 9, "(1, 2) and (2, 1) differ too"

    def test_a_run_repeats_itself(self, tmp_path):
        first, second = learner(), learner()
        run(first, tmp_path)
        random.random()
        run(second, tmp_path)
        torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)
        assert first.noise == second.noise
        other = learner()
        run(other, tmp_path, seed=8)
        assert not torch.equal(weights(first), weights(other))

    def test_every_epoch_sees_every_image_in_a_new_order(self, tmp_path):
        algorithm = learner()
        run(algorithm, tmp_path)
        assert [sorted(order) for order in algorithm.batches] == [list(range(COUNT))] * 4
        assert len(set(map(tuple, algorithm.batches))) == 4
        assert algorithm.before == [list(range(COUNT))], "in order, once, after the last epoch"

    def test_batches(self):
        loader = BatchLoader(Rows(), np.arange(COUNT), 5, torch.device("cpu"))
        assert [len(batch[0]) for batch in loader] == [5, 5, 2]
        assert len(loader) == 3


class TestProgress:
    """Losses, seconds and what ended the training."""

    def test_epochs(self, tmp_path):
        progress = run(learner(), tmp_path)
        assert (progress.epochs, progress.stopped_by, progress.resumed) == (4, "epochs", 0)
        assert len(progress.losses) == 4
        assert all(isinstance(loss["loss"], float) for loss in progress.losses)
        assert progress.seconds > 0

    def test_budget(self, tmp_path, monkeypatch):
        """Looked at after each epoch: three of 10 s fill a budget of 25 s."""
        monkeypatch.setattr(trainer.time, "perf_counter", iter(range(0, 10_000, 10)).__next__)
        algorithm = learner()
        progress = run(algorithm, tmp_path, train_seconds=25, epochs=9)
        assert (progress.epochs, progress.stopped_by) == (3, "budget")
        assert progress.seconds == 40, "three epochs and before_eval"
        assert len(algorithm.before) == 1

    def test_budget_that_is_just_enough(self, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer.time, "perf_counter", iter(range(0, 10_000, 10)).__next__)
        progress = run(learner(), tmp_path, train_seconds=31, epochs=4)
        assert (progress.epochs, progress.stopped_by) == (4, "epochs")

    def test_at_least_one_epoch(self, tmp_path):
        assert run(learner(), tmp_path, train_seconds=1e-9).epochs == 1

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_divergence(self, tmp_path, value):
        algorithm = learner()
        algorithm.value = value
        with pytest.raises(StageError, match="diverged in epoch 1: loss is not finite; lower the"):
            run(algorithm, tmp_path)
        assert not algorithm.before


class TestCheckpoint:
    """A resumed training ends where an undisturbed one does; another job's is ignored."""

    @pytest.mark.parametrize("epoch", [1, 2, 3])
    def test_resumes_to_the_same_result(self, tmp_path, checkpoints, epoch):
        undisturbed, resumed = learner(), learner()
        expected = run(undisturbed, tmp_path / "a")
        interrupt(tmp_path / "b", epoch)
        torch.nn.init.zeros_(resumed.network[1].weight)  # all comes from the checkpoint
        progress = run(resumed, tmp_path / "b")
        torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
        assert resumed.batches == undisturbed.batches[epoch:]
        assert progress.losses == expected.losses
        assert (progress.epochs, progress.resumed) == (4, 1)

    def test_seconds_add_up(self, tmp_path, checkpoints, monkeypatch):
        monkeypatch.setattr(trainer.time, "perf_counter", iter(range(0, 10_000, 10)).__next__)
        interrupt(tmp_path, 2)
        assert run(learner(), tmp_path, train_seconds=25, epochs=9).epochs == 3

    @pytest.mark.usefixtures("checkpoints")
    def test_of_another_fingerprint_is_ignored(self, tmp_path):
        interrupt(tmp_path, 2, fingerprint="OTHER")
        algorithm = learner()
        progress = run(algorithm, tmp_path)
        assert (len(algorithm.batches), progress.resumed) == (4, 0)

    @pytest.mark.usefixtures("checkpoints")
    def test_is_removed(self, tmp_path):
        interrupt(tmp_path, 2)
        assert (tmp_path / "checkpoint/progress.json").is_file()
        Checkpoint(tmp_path / "checkpoint", "FP").remove()
        assert not (tmp_path / "checkpoint").exists()

    @pytest.mark.usefixtures("checkpoints")
    def test_kill_while_it_is_removed(self, tmp_path, monkeypatch):
        """What is left must not be taken for a checkpoint, or the job could never run again."""
        interrupt(tmp_path, 2)

        with killed_while_deleting(monkeypatch):
            Checkpoint(tmp_path / "checkpoint", "FP").remove()
        assert run(learner(), tmp_path).resumed == 0

    @pytest.mark.usefixtures("checkpoints")
    def test_kill_while_it_is_replaced(self, tmp_path, monkeypatch):
        interrupt(tmp_path, 2)

        with killed_while_deleting(monkeypatch):
            run(learner(), tmp_path)
        undisturbed, algorithm = learner(), learner()
        run(undisturbed, tmp_path / "a")
        run(algorithm, tmp_path)
        torch.testing.assert_close(weights(algorithm), weights(undisturbed), rtol=0, atol=0)

    def test_none_is_written_in_a_short_training(self, tmp_path):
        interrupt(tmp_path, 3)
        assert not (tmp_path / "checkpoint").exists()


class TestDevice:
    """What cannot be had is refused."""

    def test_cpu(self):
        threads = torch.get_num_threads()
        deterministic = torch.are_deterministic_algorithms_enabled()
        try:
            assert prepare("cpu", 1) == torch.device("cpu")
            assert torch.are_deterministic_algorithms_enabled()
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_missing_gpu(self):
        with pytest.raises(StageError, match="torch sees no GPU; use device: auto or cpu"):
            prepare("cuda", 1)
