"""Average precision of the image scores."""

from numpy.typing import ArrayLike

from visionad_metrics.ranked_results import IMAGES, ap_result
from visionad_metrics.ranking import rank_images
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def image_ap(scores: ArrayLike, labels: ArrayLike) -> MetricResult:
    """Mean precision over the defective images, each at the threshold that just finds it.

    Parameters
    ----------
    scores : (N,) finite real numbers; higher is more anomalous
    labels : (N,) bool or 0/1; 1 is defective

    Returns
    -------
    MetricResult
        Value in (0, 1] with the precision-recall curve; nan where no image is defective.
        Its floor is the share of defective images.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Equal to scikit-learn's ``average_precision_score``: a sum of steps, not of trapezoids.
    """
    return contract(Samples(scores=scores, labels=labels))


@register("image_ap", level="image")
def contract(samples: Samples) -> MetricResult:
    """Compute ``image_ap`` on samples."""
    return ap_result(samples.once(rank_images), IMAGES)
