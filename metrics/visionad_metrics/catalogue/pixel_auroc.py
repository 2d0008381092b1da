"""Area under the ROC curve of all pixels of all images."""

from numpy.typing import ArrayLike

from visionad_metrics.ranked_results import PIXELS, auroc_result
from visionad_metrics.ranking import rank_pixels
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def pixel_auroc(maps: ArrayLike, masks: ArrayLike) -> MetricResult:
    """Chance that an anomalous pixel, of all images pooled, scores above a normal; ties count half.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous

    Returns
    -------
    MetricResult
        Value in [0, 1] with the ROC curve; nan where normal or anomalous pixels are missing.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Fawcett (2006), An introduction to ROC analysis.
    """
    return contract(Samples(maps, masks))


@register("pixel_auroc", level="pixel")
def contract(samples: Samples) -> MetricResult:
    """Compute ``pixel_auroc`` on samples."""
    return auroc_result(samples.once(rank_pixels), PIXELS)
