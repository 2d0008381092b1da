"""Area under the ROC curve of the image scores."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from visionad_metrics.checks import binary_array, real_array, same_shape
from visionad_metrics.ranking import auroc, roc_curve
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult


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
    scores = real_array(scores, "scores", axes="N")
    defective = binary_array(labels, "labels", axes="N")
    same_shape(scores=scores, labels=defective)
    if not defective.any():
        return MetricResult.undefined("no defective image")
    if defective.all():
        return MetricResult.undefined("no good image")

    good, bad = np.sort(scores[~defective]), np.sort(scores[defective])
    fpr, tpr = roc_curve(good, bad)
    return MetricResult(
        value=auroc(good, bad),
        curve={"fpr": fpr, "tpr": tpr},
        details={"good_images": good.size, "defective_images": bad.size},
    )


@register("image_auroc", level="image")
def contract(maps: Any, masks: Any, scores: Any, labels: Any) -> MetricResult:
    """Compute ``image_auroc`` from what every metric is given."""
    return image_auroc(scores, labels)
