"""Pixel AUROC as VisionAD's released code reports it, for comparison with its tables only."""

from numpy.typing import ArrayLike

from visionad_metrics.catalogue import pixel_auroc
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def pixel_auroc_visionad(maps: ArrayLike, masks: ArrayLike) -> MetricResult:
    """Pixel AUROC, or 1 - AUROC where that is larger: a wrong direction looks good.

    Parameters, Returns, Raises
    ---------------------------
    As :func:`visionad_metrics.pixel_auroc`, but the value lies in [0.5, 1]; ``flipped`` in the
    details tells whether it was turned round.
    """
    return contract(Samples(maps, masks))


@register("pixel_auroc_visionad", level="pixel")
def contract(samples: Samples) -> MetricResult:
    """Compute ``pixel_auroc_visionad`` on samples."""
    return pixel_auroc.contract(samples).flipped_if_lower()
