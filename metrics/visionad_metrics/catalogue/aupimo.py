"""Area under the per-image overlap curve, over false positive rates of good images."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visionad_metrics.checks import rate_limit
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples

CURVE_POINTS = 201


def aupimo(
    maps: ArrayLike, masks: ArrayLike, lower: float = 1e-5, upper: float = 1e-4
) -> MetricResult:
    """Mean share of an image's anomalous pixels that is found, where good images are left alone.

    Thresholds are the distinct scores of good images' pixels, and the false positive rate is the
    share of these pixels at or above. An image's curve is the recall of its mask over the
    logarithm of that rate, straight between points; its area between ``lower`` and ``upper`` is
    divided by ``log(upper / lower)``; the value is the mean over defective images.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous; a good image has none
    lower, upper : bounds of the false positive rate, 0 < lower < upper <= 1

    Returns
    -------
    MetricResult
        Value in [0, 1] with the mean curve (fpr, recall); details list each defective image and
        its value. nan without good or defective images, or where the highest good score alone
        makes a rate above ``lower``: too few pixels, or ties.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Bertoldo et al. (2024), AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed
    and Low Tolerance. There, 300,000 linear thresholds stand in for the distinct scores.
    """
    return contract(Samples(maps, masks), lower, upper)


@register("aupimo", level="pixel")
def contract(samples: Samples, lower: float = 1e-5, upper: float = 1e-4) -> MetricResult:
    """Compute ``aupimo`` on samples."""
    rate_limit(lower, "lower")
    rate_limit(upper, "upper")
    if lower >= upper:
        raise ValueError(f"lower must be below upper, got {lower} and {upper}")
    good, tail, total = _highest_normal(samples, upper)
    if good.all():
        return MetricResult.undefined("no anomalous pixel")
    if not good.any():
        return MetricResult.undefined("no good image")
    thresholds, first = np.unique(tail, return_index=True)
    rates = ((tail.size - first) / total)[::-1]
    if rates[0] > lower:
        return MetricResult.undefined(
            f"the lowest false positive rate is {rates[0]:.3g}, above the lower bound {lower:g}"
        )
    low, high = np.log([lower, upper])
    bounds, x = np.array([low, high]), np.log(rates)
    grid = np.linspace(low, high, CURVE_POINTS)
    inside = np.flatnonzero((x > low) & (x < high))
    points = np.concatenate([[low], x[inside], [high]])
    values, mean = [], np.zeros(grid.size)
    for _, maps, masks in samples.blocks():
        for row in np.flatnonzero(masks.any(axis=(1, 2))):
            scores = np.sort(maps[row][masks[row]])
            recall = 1 - np.searchsorted(scores, thresholds[::-1]) / scores.size
            ends = np.interp(bounds, x, recall)
            heights = np.concatenate([ends[:1], recall[inside], ends[1:]])
            values.append(float(np.trapezoid(heights, points) / (high - low)))
            mean += np.interp(grid, x, recall)
    return MetricResult(
        value=float(np.mean(values)),
        curve={"fpr": np.exp(grid), "recall": mean / len(values)},
        details={
            "good_images": int(good.sum()),
            "images": np.flatnonzero(~good).tolist(),
            "per_image": values,
        },
    )


def _highest_normal(samples: Samples, upper: float) -> tuple[NDArray[np.bool], NDArray[Any], int]:
    """Tell which images are good, and find their highest scores.

    These ascend and reach, ties included, to the first that lies beyond the rate ``upper``: a
    curve needs that one to be drawn up to the bound, and none below it.
    """
    good = [~masks.any(axis=(1, 2)) for _, _, masks in samples.blocks()]
    _, height, width = samples.shape
    clean = np.concatenate(good) if good else np.ones(0, bool)
    total = int(clean.sum()) * height * width
    needed = min(total, math.floor(upper * total) + 1)
    tail = np.empty(0, samples.dtype)
    for (_, maps, _), rows in zip(samples.blocks(), good, strict=True):
        scores = maps[rows].reshape(-1)
        if tail.size >= needed > 0:
            scores = scores[scores >= tail.min()]
        tail = np.concatenate([tail, scores])
        if tail.size > needed > 0:
            tail = tail[tail >= np.partition(tail, -needed)[-needed]]
    return clean, np.sort(tail), total
