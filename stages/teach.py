"""Train one teacher on images of all kinds, once for all categories; or take published weights.

A teacher is what algorithms need before they see a category: a small network that has learned a
large one's features, say. It never sees a test image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.artifacts.files import StageError, atomic_path, write_json
from stages.artifacts.job import Job
from stages.command import Options, run

if TYPE_CHECKING:
    import torch

    from algorithms.base import Teacher
    from stages.batches import ImageReader
    from stages.trainer import Checkpoint, Progress

LEG = 50  # steps from one seed to the next, after which a checkpoint may be written


def draws(count: int, size: int, seed: int, leg: int) -> np.ndarray:
    """Row numbers (size,) of a leg: permutations of all, one after the other."""
    rng = np.random.default_rng([seed, leg])
    rounds = [rng.permutation(count) for _ in range(-(-size // count))]
    return np.concatenate(rounds)[:size]


def learn(
    teacher: Teacher,
    reader: ImageReader,
    parameters: dict[str, Any],
    checkpoint: Checkpoint,
    progress_bar: bool,
) -> Progress:
    """Take a teacher's steps; a killed training goes on after the last leg that was saved."""
    import time

    from tqdm import tqdm

    from algorithms.base import take_step
    from stages.batches import BatchLoader, epoch_order
    from stages.devices import seed_everything
    from stages.trainer import CHECKPOINT_SECONDS, finite

    steps, size = parameters["steps"], parameters["batch_size"]
    seed, device = parameters["seed"], teacher.context.device
    progress = checkpoint.restore(teacher)
    saved, start = progress.seconds, time.perf_counter() - progress.seconds
    if progress.epochs == 0:
        seed_everything(seed, 0)
        order = epoch_order(len(reader), seed, 0, shuffle=False)
        teacher.prepare(BatchLoader(reader, order, size, device))
    bar = tqdm(total=steps, desc="steps", disable=None if progress_bar else True, mininterval=1.0)
    for leg in range(progress.epochs, -(-steps // LEG)):
        seed_everything(seed, 1 + leg)
        count = min(LEG, steps - leg * LEG)
        loader = BatchLoader(reader, draws(len(reader), count * size, seed, leg), size, device)
        teacher.network.train()
        losses = []
        for batch in loader:
            losses.append(take_step(teacher.optimizer, teacher.loss(batch[0])).item())
        progress.losses.append(finite({"loss": float(np.mean(losses))}, leg))
        progress.epochs = leg + 1
        progress.seconds = time.perf_counter() - start
        bar.update(count)
        bar.set_postfix(progress.losses[-1])
        if progress.seconds - saved > CHECKPOINT_SECONDS and leg * LEG + count < steps:
            checkpoint.save(teacher, progress)
            saved = progress.seconds
    bar.close()
    return progress


def create(job: Job, count: int, device: torch.device) -> Teacher:
    """Build a job's teacher."""
    from algorithms.base import Context, create_teacher
    from stages.inputs import backbone_maker

    parameters, side = job.parameters, job.parameters["image_size"]
    context = Context(
        image_size=(side, side),
        shapes=((3, side, side),),
        n_train=count,
        seed=parameters["seed"],
        device=device,
        mean=tuple(parameters["mean"]),
        std=tuple(parameters["std"]),
        backbone=backbone_maker(job, device),
    )
    return create_teacher(parameters["teacher"], parameters["parameters"], context)


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the teacher and how it was made."""
    from stages.devices import prepare, seed_everything
    from stages.inputs import image_reader, training_images
    from stages.trainer import Checkpoint, Progress

    parameters, device = dict(job.parameters), prepare(options.device, options.threads)
    checkpoint = Checkpoint(job.outputs["model"].parent / "checkpoint", job.fingerprint)
    seed_everything(parameters["seed"], 0)
    if parameters["weights"] is not None:
        teacher, progress, paths = create(job, 0, device), Progress(stopped_by="published"), []
        load_published(teacher, parameters["weights"])
    else:
        paths = training_images(parameters["pretraining_folders"], job.inputs["index"])
        teacher = create(job, len(paths), device)
        with image_reader(parameters, paths, options.threads) as reader:
            progress = learn(teacher, reader, parameters, checkpoint, options.progress)
    with atomic_path(job.outputs["model"]) as temporary:
        temporary.mkdir()
        teacher.save(temporary)
    facts = {
        "images": len(paths),
        "image_folders": parameters.get("pretraining_folders", []),
        "steps": parameters["steps"],
        "train_seconds": progress.seconds,
    }
    losses = [loss["loss"] for loss in progress.losses]
    write_json(job.outputs["training"], {**facts, "losses": losses, "steps_per_loss": LEG})
    checkpoint.remove()
    return facts


def load_published(teacher: Teacher, path: str) -> None:
    """Load weights that others trained, in a file of safetensors or torch's own.

    Raises
    ------
    StageError
        If they are not this kind of teacher's.
    """
    from stages.artifacts.weights import read_state_dict

    try:
        teacher.load_state(teacher.published(read_state_dict(Path(path))))
    except (ValueError, RuntimeError) as error:
        raise StageError(f"{path}: {error}") from None


if __name__ == "__main__":
    run("teach", __doc__, body)
