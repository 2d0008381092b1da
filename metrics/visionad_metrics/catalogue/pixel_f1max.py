"""Highest F1 of all pixels of all images over all thresholds."""

from numpy.typing import ArrayLike

from visionad_metrics.ranked_results import PIXELS, f1max_result
from visionad_metrics.ranking import rank_pixels
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def pixel_f1max(maps: ArrayLike, masks: ArrayLike) -> MetricResult:
    """F1 of all pixels at the threshold that suits the test images best.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous

    Returns
    -------
    MetricResult
        Value in (0, 1] with the precision-recall curve; details give the threshold, at or above
        which a pixel counts as anomalous; nan where no pixel is anomalous.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Every distinct score is a threshold; of equal ones the lowest is given.
    """
    return contract(Samples(maps, masks))


@register("pixel_f1max", level="pixel")
def contract(samples: Samples) -> MetricResult:
    """Compute ``pixel_f1max`` on samples."""
    return f1max_result(samples.once(rank_pixels), PIXELS)
