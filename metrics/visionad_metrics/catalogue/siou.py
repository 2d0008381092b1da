"""Component-wise intersection over union, as SegmentMeIfYouCan defines it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visionad_metrics.ranking import f1max, rank_pixels
from visionad_metrics.regions import find_regions, regions_of, runs_of
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples, anomalous_pixels

LEVELS = np.linspace(0.25, 0.75, 11)  # of overlap, over which the benchmark averages F1


def siou(maps: ArrayLike, masks: ArrayLike, threshold: float | None = None) -> MetricResult:
    """Mean adjusted IoU of the regions: each against all predicted components that touch it.

    What these components cover of other regions is taken out of the union, so that one prediction
    over several regions is not punished for finding them all; what they cover of none stays in.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous
    threshold : a pixel is predicted if its map is at or above; None: where the pixels' F1 is best,
        chosen on these very masks, as the benchmark does

    Returns
    -------
    MetricResult
        Value in [0, 1] with the curve (level, f1): a region counts as found, and a component as
        right, if its overlap exceeds the level. Details give the threshold, the mean precision of
        components ``ppv`` (None if there is none) and ``f1``, the mean of the curve. nan where no
        pixel is anomalous.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Chan et al. (2021), SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation, section 4.2.
    """
    return contract(Samples(maps, masks), threshold)


@register("siou", level="pixel")
def contract(samples: Samples, threshold: float | None = None) -> MetricResult:
    """Compute ``siou`` on samples."""
    places = anomalous_pixels(samples)
    if not places.size:
        return MetricResult.undefined("no anomalous pixel")
    if threshold is None:
        ranking = samples.once(rank_pixels)
        threshold = f1max(ranking)[1] if ranking else 0.0
    elif isinstance(threshold, bool) or not np.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold!r}")
    _, height, width = samples.shape
    predicted = np.concatenate(
        [
            np.flatnonzero(maps >= threshold) + first * height * width
            for first, maps, _ in samples.blocks()
        ]
    )
    components = regions_of(runs_of(predicted, height, width))
    overlaps, precisions = _overlaps(samples, predicted, components.of_pixel, components.size)
    found = (overlaps[:, np.newaxis] > LEVELS).sum(axis=0)
    wrong = (precisions[:, np.newaxis] <= LEVELS).sum(axis=0)
    f1 = 2 * found / (found + overlaps.size + wrong)
    return MetricResult(
        value=float(overlaps.mean()),
        curve={"level": LEVELS, "f1": f1},
        details={
            "threshold": float(threshold),
            "regions": overlaps.size,
            "components": precisions.size,
            "ppv": float(precisions.mean()) if precisions.size else None,
            "f1": float(f1.mean()),
        },
    )


def _overlaps(
    samples: Samples,
    predicted: NDArray[np.int64],
    component: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the adjusted IoU of each region (R,) and the precision of each component (C,)."""
    regions = samples.once(find_regions)
    _, hits, at = np.intersect1d(
        anomalous_pixels(samples), predicted, assume_unique=True, return_indices=True
    )
    region, component = regions.of_pixel[hits], component[at]
    right = np.bincount(component, minlength=sizes.size)
    pairs = np.unique(np.stack([region, component]), axis=1)
    # The union: the region itself, and what its components cover outside all regions.
    outside = np.bincount(pairs[0], weights=(sizes - right)[pairs[1]], minlength=regions.size.size)
    found = np.bincount(region, minlength=regions.size.size)
    return found / (regions.size + outside), right / sizes
