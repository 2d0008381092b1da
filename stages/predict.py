"""Predict the test images of one category: maps and scores, of every method of an algorithm.

The algorithm gets pixels or features and nothing else: no label, mask, id or path. What comes back
is checked before it is written.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.artifacts.files import StageError, read_json
from stages.artifacts.job import Job
from stages.artifacts.maps import write_maps
from stages.command import Options, run

if TYPE_CHECKING:
    from algorithms.base import Algorithm
    from stages.batches import Reader

BATCH_SIZE = 16  # results must not depend on it: the contract test checks that


def check_prediction(
    maps: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    count: int,
    size: tuple[int, int],
    primary: tuple[str, str],
) -> None:
    """Check methods, counts, shapes and finiteness of a prediction.

    Raises
    ------
    StageError
        Naming the method and what is wrong with it.
    """
    if primary[0] not in maps or primary[1] not in scores:
        raise StageError(
            f"primary {primary} is not among maps {sorted(maps)}, scores {sorted(scores)}"
        )
    wanted = [
        (kind, name, array, shape)
        for kind, arrays, shape in (("maps", maps, (count, *size)), ("scores", scores, (count,)))
        for name, array in arrays.items()
    ]
    for kind, name, array, shape in wanted:
        if array.shape != shape:
            raise StageError(f"{kind}[{name}] has shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise StageError(
                f"{kind}[{name}] holds {np.sum(~np.isfinite(array))} values that are not finite"
            )


def predict_images(
    algorithm: Algorithm, reader: Reader
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """Predict all images of a reader, and check what comes back.

    Returns
    -------
    maps
        (N, H, W) float32 by method.
    scores
        (N,) by method.
    seconds
        Time that the algorithm took, reading not counted.

    Raises
    ------
    StageError
        If a prediction is not what the contract asks for.
    """
    import torch
    from tqdm import tqdm

    from stages.batches import BatchLoader, epoch_order

    maps: dict[str, list[np.ndarray]] = {}
    scores: dict[str, list[np.ndarray]] = {}
    seconds = 0.0
    order = epoch_order(len(reader), 0, 0, shuffle=False)
    loader = BatchLoader(reader, order, BATCH_SIZE, algorithm.context.device)
    with torch.inference_mode():
        for batch in tqdm(loader, desc="predict", disable=None, mininterval=1.0):
            start = time.perf_counter()
            prediction = algorithm.predict(batch)
            for kept, returned in ((maps, prediction.maps), (scores, prediction.scores)):
                for method, values in returned.items():
                    kept.setdefault(method, []).append(values.detach().cpu().numpy())
            seconds += time.perf_counter() - start
    all_maps = {method: np.concatenate(parts).astype(np.float32) for method, parts in maps.items()}
    all_scores = {method: np.concatenate(parts) for method, parts in scores.items()}
    size = algorithm.context.image_size
    check_prediction(all_maps, all_scores, len(reader), size, algorithm.primary)
    return all_maps, all_scores, seconds


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the maps and scores of the job's category."""
    from stages.devices import prepare, seed_everything
    from stages.inputs import create_algorithm, image_ids, open_reader

    device = prepare(options.device, options.threads)
    n_train = read_json(job.input("training"))["train_images"]
    ids = image_ids(job, "test")
    with open_reader(job, "test", options.threads) as reader:
        if len(ids) != len(reader) or getattr(reader, "ids", ids) != ids:
            raise StageError(
                f"{job.inputs['features'][0]}: its images are not those of {job.input('index')}; "
                "run snakemake again"
            )
        seed_everything(job.parameters["seed"], 0)
        algorithm = create_algorithm(job, reader.shapes, n_train, device)
        algorithm.load(job.input("model"))
        maps, scores, seconds = predict_images(algorithm, reader)
    write_maps(job.outputs["maps"], ids, maps, scores, algorithm.primary)
    return {
        "test_images": len(ids),
        "inference_seconds": seconds,
        "inference_seconds_per_image": seconds / len(ids),
    }


if __name__ == "__main__":
    run("predict", __doc__, body)
