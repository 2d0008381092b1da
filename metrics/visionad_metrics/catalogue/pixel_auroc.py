"""Area under the ROC curve of all pixels of all images."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from visionad_metrics.checks import binary_array, real_array, same_shape
from visionad_metrics.ranking import auroc, roc_curve
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult


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
    maps = real_array(maps, "maps", axes="N H W")
    anomalous = binary_array(masks, "masks", axes="N H W")
    same_shape(maps=maps, masks=anomalous)
    if not anomalous.any():
        return MetricResult.undefined("no anomalous pixel")
    if anomalous.all():
        return MetricResult.undefined("no normal pixel")

    inside, outside = np.sort(maps[anomalous]), np.sort(maps[~anomalous])
    fpr, tpr = roc_curve(outside, inside)
    return MetricResult(
        value=auroc(outside, inside),
        curve={"fpr": fpr, "tpr": tpr},
        details={"normal_pixels": outside.size, "anomalous_pixels": inside.size},
    )


@register("pixel_auroc", level="pixel")
def contract(maps: Any, masks: Any, scores: Any, labels: Any) -> MetricResult:
    """Compute ``pixel_auroc`` from what every metric is given."""
    return pixel_auroc(maps, masks)
