"""AUPRO as VisionAD's released code computes it, for comparison with its tables only."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visionad_metrics.regions import find_regions
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples, anomalous_pixels, anomalous_scores

STEPS = 200
LIMIT = 0.3


def aupro_visionad(maps: ArrayLike, masks: ArrayLike) -> MetricResult:
    """AUPRO over 199 linear thresholds and defective images only, in the better direction.

    The curve is kept below a false positive rate of 0.3, which is divided by the largest rate kept
    instead of 0.3; nothing is interpolated there, and the point (0, 0) is not added. It is
    integrated turned round, too, and the larger area counts. Off by up to 0.2 from the exact
    :func:`visionad_metrics.aupro` where scores are tied or have outliers.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers
    masks : (N, H, W) bool or 0/1; 1 is anomalous

    Returns
    -------
    MetricResult
        Value in [0, 1] with the curve (fpr, pro) up to the limit; 0 where the kept rates are all
        0; nan where pixels of either kind are missing or the maps are constant.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    return contract(Samples(maps, masks))


@register("aupro_visionad", level="pixel")
def contract(samples: Samples) -> MetricResult:
    """Compute ``aupro_visionad`` on samples."""
    if not anomalous_pixels(samples).size:
        return MetricResult.undefined("no anomalous pixel")
    ends = [(float(maps.min()), float(maps.max())) for maps, _ in _defective(samples)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low == high:
        return MetricResult.undefined("the maps are constant: there is no threshold")
    thresholds = np.linspace(low, high, STEPS + 1)[1:-1]
    weights = samples.once(find_regions).equal_weights()
    anomalous = anomalous_scores(samples)
    order = np.argsort(anomalous)
    missed = np.append(0, np.cumsum(weights[order]))
    pro = 1 - missed[np.searchsorted(anomalous[order], thresholds, side="left")]
    below, total = np.zeros(thresholds.size, np.int64), 0
    for maps, mask in _defective(samples):
        normal = np.sort(maps[~mask])
        below += np.searchsorted(normal, thresholds, side="left")
        total += normal.size
    if not total:
        return MetricResult.undefined("no normal pixel in defective images")
    fpr = 1 - below / total
    kept = fpr < LIMIT
    return MetricResult(
        value=max(_kept_area(fpr, pro), _kept_area(1 - fpr, 1 - pro)),
        curve={"fpr": fpr[kept][::-1], "pro": pro[kept][::-1]},
        details={"thresholds": int(kept.sum())},
    )


def _defective(samples: Samples) -> Iterator[tuple[NDArray[Any], NDArray[np.bool]]]:
    """Read map and mask (H, W) of each defective image."""
    for _, maps, masks in samples.blocks():
        for image in np.flatnonzero(masks.any(axis=(1, 2))):
            yield maps[image], masks[image]


def _kept_area(fpr: NDArray[np.float64], pro: NDArray[np.float64]) -> float:
    """Integrate what lies below the limit over rates rescaled by the largest of them."""
    kept = fpr < LIMIT
    largest = fpr[kept].max(initial=0.0)
    return abs(float(np.trapezoid(pro[kept], fpr[kept] / largest))) if largest else 0.0
