"""Highest F1 of the image scores over all thresholds."""

from numpy.typing import ArrayLike

from visionad_metrics.ranked_results import IMAGES, f1max_result
from visionad_metrics.ranking import rank_images
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def image_f1max(scores: ArrayLike, labels: ArrayLike) -> MetricResult:
    """F1 at the threshold that suits the test images best: an upper bound, not a promise.

    Parameters
    ----------
    scores : (N,) finite real numbers; higher is more anomalous
    labels : (N,) bool or 0/1; 1 is defective

    Returns
    -------
    MetricResult
        Value in (0, 1] with the precision-recall curve; details give the threshold, at or above
        which an image counts as defective; nan where no image is defective.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Every distinct score is a threshold; of equal ones the lowest is given.
    """
    return contract(Samples(scores=scores, labels=labels))


@register("image_f1max", level="image")
def contract(samples: Samples) -> MetricResult:
    """Compute ``image_f1max`` on samples."""
    return f1max_result(samples.once(rank_images), IMAGES)
