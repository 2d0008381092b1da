"""Area under the ROC curve of all pixels of all images."""

from numpy.typing import ArrayLike

from visionad_metrics.ranking import auroc, curve, rank_pixels
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
    ranking = samples.once(rank_pixels)
    if ranking is None:
        return MetricResult.undefined("no anomalous pixel")
    if not ranking.normal:
        return MetricResult.undefined("no normal pixel")
    fpr, tpr = curve(ranking, ranking.sizes / ranking.anomalous)
    return MetricResult(
        value=auroc(ranking),
        curve={"fpr": fpr, "tpr": tpr},
        details={"normal_pixels": ranking.normal, "anomalous_pixels": ranking.anomalous},
    )
