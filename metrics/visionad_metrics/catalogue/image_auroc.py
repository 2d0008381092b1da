"""Area under the ROC curve of the image scores."""

from numpy.typing import ArrayLike

from visionad_metrics.ranked_results import IMAGES, auroc_result
from visionad_metrics.ranking import rank_images
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> MetricResult:
    """Chance that a defective image scores above a good one; a tie counts half.

    Parameters
    ----------
    scores : (N,) finite real numbers; higher is more anomalous
    labels : (N,) bool or 0/1; 1 is defective

    Returns
    -------
    MetricResult
        Value in [0, 1] with the ROC curve; nan where good or defective images are missing.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Fawcett (2006), An introduction to ROC analysis. Equal to MVTec's official evaluation.
    """
    return contract(Samples(scores=scores, labels=labels))


@register("image_auroc", level="image")
def contract(samples: Samples) -> MetricResult:
    """Compute ``image_auroc`` on samples."""
    return auroc_result(samples.once(rank_images), IMAGES)
