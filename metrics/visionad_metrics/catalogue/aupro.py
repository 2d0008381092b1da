"""Area under the per-region overlap curve, as MVTec defines it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visionad_metrics.checks import rate_limit
from visionad_metrics.ranked_results import overlap_result
from visionad_metrics.ranking import rank_pixels
from visionad_metrics.regions import find_regions
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def aupro(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3) -> MetricResult:
    """Mean share of a region that is found, over false positive rates up to ``limit``.

    A region is an 8-connected part of a mask, and each counts the same however large it is. The
    false positive rate is taken over all pixels outside regions, of good and defective images.
    Every distinct score is a threshold; equal scores are one straight segment of the curve, which
    is cut at the limit by linear interpolation; the area is divided by the limit.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous
    limit : highest false positive rate, in (0, 1]

    Returns
    -------
    MetricResult
        Value in [0, 1] with the curve (fpr, pro); nan where normal or anomalous pixels are missing.
        Maps that are constant get ``limit / 2``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Bergmann et al. (2021), The MVTec Anomaly Detection Dataset, section 5.2, and its evaluation
    code of 2022.
    """
    return contract(Samples(maps, masks), limit)


@register("aupro", level="pixel")
def contract(samples: Samples, limit: float = 0.3) -> MetricResult:
    """Compute ``aupro`` on samples."""
    rate_limit(limit, "limit")
    ranking = samples.once(rank_pixels)
    if ranking is None:
        return MetricResult.undefined("no anomalous pixel")
    if not ranking.normal:
        return MetricResult.undefined("no normal pixel")
    gains = samples.once(region_gains)
    details = {"regions": samples.once(find_regions).size.size}
    return overlap_result(ranking, gains, limit, "pro", details)


def region_gains(samples: Samples) -> NDArray[np.float64]:
    """Return what each group of the ranking adds to the mean overlap, (K,)."""
    weights = samples.once(find_regions).equal_weights()
    ranking = samples.once(rank_pixels)
    return ranking.group_sums(weights) if ranking else weights
