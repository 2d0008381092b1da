"""ROC analysis from one sort of the normal scores, exact with ties.

For an anomalous score let a be the share of normal scores strictly above it and b the share at
or above it. AUROC is the mean of 1 - (a + b) / 2 over the anomalous scores. Counts stay
integers until the last division, and scores are only ever compared, so their dtype does not
matter and a strictly increasing transform changes nothing.

Sorted input is used as it is: a caller that needs several of these functions sorts once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def counts_above(
    normal: NDArray[Any], anomalous: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count, for each anomalous score, the normal scores above it and those at or above it.

    Parameters
    ----------
    normal : (N,) real numbers
    anomalous : (P,) real numbers; ten times faster when sorted

    Returns
    -------
    above, at_or_above : (P,) int64, in the order of ``anomalous``
    """
    normal = _ascending(normal)
    above = normal.size - np.searchsorted(normal, anomalous, side="right")
    at_or_above = normal.size - np.searchsorted(normal, anomalous, side="left")
    return above, at_or_above


def auroc(normal: NDArray[Any], anomalous: NDArray[Any]) -> float:
    """Return the area under the ROC curve, in [0, 1].

    Parameters
    ----------
    normal, anomalous : (N,) and (P,) real numbers, neither empty

    Raises
    ------
    ValueError
        If either is empty: the area is undefined.
    """
    _require_both(normal, anomalous)
    above, at_or_above = counts_above(normal, _ascending(anomalous))
    lost = int(above.sum()) + int(at_or_above.sum())  # twice the pairs in the wrong order
    pairs = normal.size * anomalous.size
    return (2 * pairs - lost) / (2 * pairs)


def roc_curve(
    normal: NDArray[Any], anomalous: NDArray[Any], max_points: int = 1000
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points of the ROC curve, from (0, 0) to (1, 1).

    All points, one per distinct score, if these are few enough. Otherwise up to ``max_points``
    of them, none moved, spread evenly over both rates.

    Parameters
    ----------
    normal, anomalous : (N,) and (P,) real numbers, neither empty
    max_points : at least 2

    Returns
    -------
    fpr, tpr : (K,) float64 with K <= max_points, ascending

    Raises
    ------
    ValueError
        If either array is empty or ``max_points`` is below 2.

    References
    ----------
    Fawcett (2006), An introduction to ROC analysis, algorithm 1: ties form one point.
    """
    _require_both(normal, anomalous)
    if max_points < 2:
        raise ValueError(f"max_points must be at least 2, got {max_points}")
    normal, anomalous = _ascending(normal), _ascending(anomalous)
    thresholds = _thresholds(normal, anomalous, max_points - 1)[::-1]
    rates = [
        (scores.size - np.searchsorted(scores, thresholds, side="left")) / scores.size
        for scores in (normal, anomalous)
    ]
    fpr, tpr = (np.concatenate([[0.0], rate]) for rate in rates)
    return fpr, tpr


def _thresholds(normal: NDArray[Any], anomalous: NDArray[Any], limit: int) -> NDArray[Any]:
    """Choose up to ``limit`` of the scores, ascending; the lowest is always among them."""
    distinct = [scores[_starts(scores)] for scores in (normal, anomalous)]
    if max(scores.size for scores in distinct) <= limit:
        union = np.union1d(*distinct)
        if union.size <= limit:
            return union
    lowest = np.minimum(normal[:1], anomalous[:1])
    spread = [
        scores[np.linspace(0, scores.size - 1, (limit - 1) // 2).astype(np.int64)]
        for scores in (normal, anomalous)
    ]
    return np.unique(np.concatenate([lowest, *spread]))


def _starts(ascending: NDArray[Any]) -> NDArray[np.bool]:
    """Mark the first of each run of equal scores."""
    return np.concatenate([[True], ascending[1:] != ascending[:-1]])


def _ascending(scores: NDArray[Any]) -> NDArray[Any]:
    """Return the scores sorted; checking is much cheaper than sorting again."""
    return scores if bool((scores[1:] >= scores[:-1]).all()) else np.sort(scores)


def _require_both(normal: NDArray[Any], anomalous: NDArray[Any]) -> None:
    if not normal.size or not anomalous.size:
        raise ValueError(
            "normal and anomalous scores must not be empty, "
            f"got {normal.size} normal and {anomalous.size} anomalous"
        )
