"""Train one algorithm on one category with one seed; resumes where a killed run left off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.artifacts.files import atomic_path, write_json
from stages.artifacts.job import Job
from stages.command import Options, run

if TYPE_CHECKING:
    from stages.inputs import Opening


def body(job: Job, options: Options, opening: Opening | None = None) -> dict[str, Any]:
    """Write the model and what training said on its way.

    ``opening`` opens what is trained on; by default, the training images as they are.
    """
    from dataclasses import asdict

    from stages.devices import prepare, seed_everything
    from stages.inputs import create_algorithm, open_training
    from stages.trainer import Checkpoint, train

    device = prepare(options.device, options.threads)
    folder = job.outputs["model"].parent
    checkpoint = Checkpoint(folder / "checkpoint", job.fingerprint)
    parameters = dict(job.parameters)
    with (opening or open_training)(job, options.threads) as (reader, held_out):
        seed_everything(parameters["seed"], 0)
        algorithm = create_algorithm(job, reader.shapes, len(reader), device, options.threads)
        progress = train(algorithm, reader, parameters, checkpoint, options.progress, held_out)
        # Of an open reader: features that are too many for memory are read from their file.
        shapes = [list(shape) for shape in reader.shapes]
        count, calibrated = len(reader), len(held_out or ())
    with atomic_path(job.outputs["model"]) as temporary:
        temporary.mkdir()
        algorithm.save(temporary)
    write_json(
        job.outputs["training"],
        asdict(progress)
        | {
            "algorithm": parameters["algorithm"],
            "parameters": parameters["parameters"],
            "shapes": shapes,
            "train_images": count,
            "held_out_images": calibrated,
        },
    )
    checkpoint.remove()
    return {
        "train_seconds": progress.seconds,
        "train_seconds_per_image": progress.seconds / count,
        "train_images": count,
        "held_out_images": calibrated,
        "epochs": progress.epochs,
        "stopped_by": progress.stopped_by,
    }


if __name__ == "__main__":
    run("train", __doc__, body)
