"""Image AUROC as VisionAD's released code reports it, for comparison with its tables only."""

from numpy.typing import ArrayLike

from visionad_metrics.catalogue import image_auroc
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples


def image_auroc_visionad(scores: ArrayLike, labels: ArrayLike) -> MetricResult:
    """Image AUROC, or 1 - AUROC where that is larger: a wrong direction looks good.

    Parameters, Returns, Raises
    ---------------------------
    As :func:`visionad_metrics.image_auroc`, but the value lies in [0.5, 1]; ``flipped`` in the
    details tells whether it was turned round.
    """
    return contract(Samples(scores=scores, labels=labels))


@register("image_auroc_visionad", level="image")
def contract(samples: Samples) -> MetricResult:
    """Compute ``image_auroc_visionad`` on samples."""
    return image_auroc.contract(samples).flipped_if_lower()
