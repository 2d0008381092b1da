"""Time the bootstrap of one category beside the loop over resampled images that it replaces.

    python benchmarks/bootstrap.py --images 83 160

The loop copies the drawn images and measures them with the same metric of visionad-metrics, which
is exact and sorts once; of image AUROC with scikit-learn's, too. It is run for a few resamples and
extrapolated to all of them, in the same process and on the same arrays, one after the other; each
side's best of three. The largest difference of the values of both is printed, too.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.ndimage import zoom
from sklearn.metrics import roc_auc_score

from visionad_metrics import Samples, compute_on, level
from visionad_metrics.bootstrap import draw, resample

METRICS = ("image_auroc", "pixel_auroc", "aupro", "pl")
LOOPED, REPEATS = 5, 3


def make(images: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw maps (N, H, W) float32 of smooth noise, and masks of defects seen more or less well.

    Three of four images are defective, with one to three boxes each.
    """
    noise = rng.normal(size=(images, size // 16, size // 16))
    maps = zoom(noise, (1, 16, 16), order=1).astype(np.float32)
    masks = np.zeros(maps.shape, bool)
    for image in range(images // 4, images):
        for _ in range(rng.integers(1, 4)):
            height, width = rng.integers(size // 20, size // 5, 2)
            top, left = rng.integers(0, size - size // 5, 2)
            box = (image, slice(top, top + height), slice(left, left + width))
            masks[box] = True
            maps[box] += 3 * rng.random()
    return maps, masks


def best(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the fewest seconds of some runs, and what the last returned."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        values = run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), values


def rows(images: int, size: int, resamples: int) -> list[str]:
    """Measure one category, and lay out a table's rows."""
    maps, masks = make(images, size, np.random.default_rng(0))
    scores, labels = maps.mean(axis=(1, 2)), masks.any(axis=(1, 2))
    weights = draw([f"{n:04}" for n in range(images)], labels, resamples, 0, "category")
    drawn = [np.repeat(np.arange(images), row) for row in weights[:LOOPED]]
    found = []

    def samples(metric: str, rows: np.ndarray | slice = slice(None)) -> Samples:
        if level(metric) == "image":
            return Samples(scores=scores[rows], labels=labels[rows])
        return Samples(maps[rows], masks[rows])

    def loop(measure: Callable[[np.ndarray], float]) -> np.ndarray:
        return np.array([measure(rows) for rows in drawn])

    for metric in METRICS:
        ours, values = best(lambda m=metric: resample(samples(m), m, {}, weights).replicates)
        loops: list[tuple[str, Callable[[np.ndarray], float]]] = [
            ("visionad_metrics", lambda rows, m=metric: compute_on(samples(m, rows), m, {}).value)
        ]
        if metric == "image_auroc":
            loops.append(("scikit-learn", lambda rows: roc_auc_score(labels[rows], scores[rows])))
        for name, measure in loops:
            seconds, expected = best(lambda measure=measure: loop(measure))
            seconds *= resamples / LOOPED
            difference = np.abs(values[:LOOPED] - expected).max()
            found.append(
                f"| {images} | {metric} | {ours:.3g} | {name} | {seconds:.3g} | "
                f"{seconds / ours:.0f} | {difference:.0e} |"
            )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[83, 160])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    print(f"{arguments.resamples} resamples, maps of {arguments.size} px, one thread")
    print("| images | metric | ours, s | loop with | loop, s | ratio | largest difference |")
    print("|---:|---|---:|---|---:|---:|---:|")
    for images in arguments.images:
        for row in rows(images, arguments.size, arguments.resamples):
            print(row, flush=True)


if __name__ == "__main__":
    main()
