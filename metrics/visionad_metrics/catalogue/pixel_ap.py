"""Average precision of all pixels of all images."""

from numpy.typing import ArrayLike

from visionad_metrics.ranked_results import PIXELS, ap_result
from visionad_metrics.ranking import rank_pixels
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def pixel_ap(maps: ArrayLike, masks: ArrayLike) -> MetricResult:
    """Mean precision over the anomalous pixels of all images, each at its own score.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous

    Returns
    -------
    MetricResult
        Value in (0, 1] with the precision-recall curve; nan where no pixel is anomalous.
        Its floor is the share of anomalous pixels.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Equal to scikit-learn's ``average_precision_score``: a sum of steps, not of trapezoids.
    """
    return contract(Samples(maps, masks))


@register("pixel_ap", level="pixel")
def contract(samples: Samples) -> MetricResult:
    """Compute ``pixel_ap`` on samples."""
    return ap_result(samples.once(rank_pixels), PIXELS)
