"""The training loop: epochs, time budget, seeds, checkpoints. No epoch is chosen by test data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tqdm import tqdm

from algorithms.base import Algorithm, Teacher, save_tensors
from stages.artifacts.files import StageError, atomic_path, read_json, remove, write_json
from stages.batches import BatchLoader, Reader, epoch_order
from stages.devices import seed_everything

CHECKPOINT_SECONDS = 20.0  # at most about this much training is lost to a kill


@dataclass
class Progress:
    """How far training has come."""

    epochs: int = 0
    seconds: float = 0.0  # training and fitting, over all resumptions
    losses: list[dict[str, float]] = field(default_factory=list)
    stopped_by: str = "epochs"  # or "budget"
    resumed: int = 0


class Checkpoint:
    """A folder that holds the state after some epoch, or nothing; belongs to one fingerprint."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def save(self, algorithm: Algorithm | Teacher, progress: Progress) -> None:
        """Replace the checkpoint atomically."""
        with atomic_path(self.folder) as temporary:
            temporary.mkdir(parents=True)
            algorithm.save(temporary)
            save_tensors(algorithm.training_state(), temporary / "training.safetensors")
            data = {"fingerprint": self.fingerprint, **asdict(progress)}
            write_json(temporary / "progress.json", data)

    def restore(self, algorithm: Algorithm | Teacher) -> Progress:
        """Load the checkpoint, if there is one of the same job; else start from nothing."""
        path = self.folder / "progress.json"
        if not path.is_file():
            return Progress()
        data = read_json(path)
        if data.pop("fingerprint") != self.fingerprint:
            return Progress()
        algorithm.load(self.folder)
        # On the CPU: the optimiser moves its moments by itself, and keeps step counts here.
        algorithm.load_training_state(load_file(self.folder / "training.safetensors"))
        return Progress(**{**data, "resumed": data["resumed"] + 1})

    def remove(self) -> None:
        """Delete the checkpoint, what makes it one first."""
        remove(self.folder / "progress.json")
        remove(self.folder)


@contextmanager
def _timed(progress: Progress) -> Iterator[None]:
    start = time.perf_counter()
    yield
    progress.seconds += time.perf_counter() - start


def finite(losses: dict[str, float], epoch: int) -> dict[str, float]:
    """Return the losses of an epoch, numbered from 0, as floats.

    Raises
    ------
    StageError
        If one is not finite.
    """
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise StageError(
            f"training diverged in epoch {epoch + 1}: {', '.join(bad)} is not finite; lower the "
            "learning rate or the number of epochs"
        )
    return {name: float(value) for name, value in losses.items()}


def train(
    algorithm: Algorithm,
    reader: Reader,
    parameters: dict[str, Any],
    checkpoint: Checkpoint,
    progress_bar: bool = True,
    held_out: Reader | None = None,
) -> Progress:
    """Train until the epochs or the budget are used up, then prepare for prediction.

    As in the paper, the budget counts training and fitting, is looked at after each epoch, and
    does not interrupt one. Every epoch's seeds depend on (seed, epoch) alone, so a training
    that was killed and resumed ends where an undisturbed one does.

    Parameters
    ----------
    parameters
        ``epochs``, ``batch_size``, ``seed``, ``train_seconds`` (None: no limit).
    held_out
        Normal images that the reader does not have, for algorithms that calibrate by them.

    Raises
    ------
    StageError
        If a loss is not finite.
    """
    device, seed = algorithm.context.device, parameters["seed"]
    progress = checkpoint.restore(algorithm)
    budget = parameters["train_seconds"] or math.inf
    saved = progress.seconds
    bar = tqdm(
        total=parameters["epochs"],
        initial=progress.epochs,
        desc="epochs",
        disable=None if progress_bar else True,
        mininterval=1.0,
    )
    while progress.epochs < parameters["epochs"]:
        if progress.seconds >= budget:
            progress.stopped_by = "budget"
            break
        seed_everything(seed, 1 + progress.epochs)
        order = epoch_order(len(reader), seed, progress.epochs, algorithm.shuffle)
        loader = BatchLoader(reader, order, parameters["batch_size"], device)
        with _timed(progress):
            losses = algorithm.train_one_epoch(loader)
        progress.losses.append(finite(losses, progress.epochs))
        progress.epochs += 1
        bar.update()
        bar.set_postfix(losses)
        more = progress.epochs < parameters["epochs"] and progress.seconds < budget
        if more and progress.seconds - saved > CHECKPOINT_SECONDS:
            checkpoint.save(algorithm, progress)
            saved = progress.seconds
    bar.close()
    order = epoch_order(len(reader), seed, 0, shuffle=False)
    with _timed(progress):
        algorithm.before_eval(BatchLoader(reader, order, parameters["batch_size"], device))
    if held_out is not None:
        order = epoch_order(len(held_out), seed, 0, shuffle=False)
        with _timed(progress):
            algorithm.calibrate(BatchLoader(held_out, order, parameters["batch_size"], device))
    return progress
