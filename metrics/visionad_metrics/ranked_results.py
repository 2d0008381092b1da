"""What the metrics of images and those of pixels make of a ranking, in the words of either."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionad_metrics.ranking import (
    Ranking,
    area,
    auroc,
    average_precision,
    curve,
    f1max,
    precision_recall,
)
from visionad_metrics.result import MetricResult


@dataclass(frozen=True)
class Words:
    """How normal and anomalous items are called."""

    normal: str
    anomalous: str

    def counts(self, ranking: Ranking) -> dict[str, int]:
        """Name the counts of items for ``details``."""
        return {f"{self.normal}s": ranking.normal, f"{self.anomalous}s": ranking.anomalous}

    def missing(self, word: str) -> MetricResult:
        """Say that there is no such item."""
        return MetricResult.undefined(f"no {word.replace('_', ' ')}")


IMAGES = Words("good_image", "defective_image")
PIXELS = Words("normal_pixel", "anomalous_pixel")


def auroc_result(ranking: Ranking | None, words: Words) -> MetricResult:
    """AUROC with its curve; nan without items of either kind."""
    if ranking is None:
        return words.missing(words.anomalous)
    if not ranking.normal:
        return words.missing(words.normal)
    fpr, tpr = curve(ranking, ranking.sizes / ranking.anomalous)
    return MetricResult(auroc(ranking), None, {"fpr": fpr, "tpr": tpr}, words.counts(ranking))


def ap_result(ranking: Ranking | None, words: Words) -> MetricResult:
    """Average precision with its curve; nan without anomalous items."""
    if ranking is None:
        return words.missing(words.anomalous)
    recall, precision = precision_recall(ranking)
    points = {"recall": recall, "precision": precision}
    return MetricResult(average_precision(ranking), None, points, words.counts(ranking))


def f1max_result(ranking: Ranking | None, words: Words) -> MetricResult:
    """F1-max with its threshold and the same curve; nan without anomalous items."""
    if ranking is None:
        return words.missing(words.anomalous)
    value, threshold = f1max(ranking)
    recall, precision = precision_recall(ranking)
    points = {"recall": recall, "precision": precision}
    return MetricResult(value, None, points, {"threshold": threshold, **words.counts(ranking)})


def overlap_result(
    ranking: Ranking, gains: NDArray[np.float64], limit: float, name: str, details: dict[str, Any]
) -> MetricResult:
    """Area up to a false positive rate below the curve (fpr, ``name``) that gains (K,) make."""
    fpr, overlap = curve(ranking, gains, limit)
    details = {**details, "normal_pixels": ranking.normal}
    return MetricResult(area(ranking, gains, limit), None, {"fpr": fpr, name: overlap}, details)
