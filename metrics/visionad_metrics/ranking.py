"""Rank analysis from one sort, exact with ties.

What decides is, for each anomalous score, how many normal scores lie above it and how many at or
above it. These counts stay integers until the last division, and scores are only compared, so
their dtype does not matter and a strictly increasing transform changes nothing.

Anomalous pixels are few. So the many normal ones are sorted without their places (several times
faster than an argsort), block by block, and then only looked up; the curves of all metrics have
their corners at anomalous scores, so nothing else is needed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionad_metrics.samples import Samples, anomalous_pixels

Counts = NDArray[np.int64]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Anomalous items by score, highest first; equal scores form one of K groups.

    Attributes
    ----------
    order : (P,) int64, which item stands at each rank
    starts : (K,) int64, the rank of each group's first item
    scores : (K,) the score of each group, strictly descending
    above, at_or_above : (K,) int64, normal items above each score, and those at or above it
    normal : the number of normal items
    """

    order: Counts
    starts: Counts
    scores: NDArray[Any]
    above: Counts
    at_or_above: Counts
    normal: int

    @property
    def anomalous(self) -> int:
        """The number of anomalous items, P."""
        return self.order.size

    @cached_property
    def hits(self) -> Counts:
        """Anomalous items at or above each score, (K,)."""
        return np.append(self.starts[1:], self.anomalous)

    @cached_property
    def sizes(self) -> Counts:
        """Anomalous items of each group, (K,)."""
        return np.diff(self.starts, append=self.anomalous)

    def group_sums(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum weights (P,), given in the items' own order, over each group: (K,)."""
        return np.asarray(np.add.reduceat(weights[self.order], self.starts))


def rank(normal: NDArray[Any], anomalous: NDArray[Any]) -> Ranking:
    """Rank anomalous scores (P,), P >= 1, among normal ones (N,)."""
    return _rank(anomalous, [np.sort(normal)])


def rank_pixels(samples: Samples) -> Ranking | None:
    """Rank all anomalous pixels among all normal ones; None if there is no anomalous pixel.

    Items are the anomalous pixels in the order of :func:`samples.anomalous_pixels`. Ask for it by
    ``samples.once(rank_pixels)``, so that all metrics share the sort.
    """
    places = samples.once(anomalous_pixels)
    if not places.size:
        return None
    pixels = samples.shape[1] * samples.shape[2]
    anomalous = [
        maps.reshape(-1)[_within(places, first * pixels, maps.size)]
        for first, maps, _ in samples.blocks()
    ]
    blocks = (
        _ascending_normal(maps, _within(places, first * pixels, maps.size))
        for first, maps, _ in samples.blocks()
    )
    return _rank(np.concatenate(anomalous), blocks)


def _rank(anomalous: NDArray[Any], blocks: Iterable[NDArray[Any]]) -> Ranking:
    """Rank anomalous scores (P,) among normal ones that come in ascending blocks."""
    order = np.argsort(anomalous)[::-1]
    descending = anomalous[order]
    starts = np.flatnonzero(np.append(True, descending[1:] != descending[:-1]))
    scores = descending[starts]
    above, at_or_above = np.zeros((2, scores.size), np.int64)
    normal = 0
    for block in blocks:
        low, high = _places(block, scores[::-1])
        above += block.size - high[::-1]
        at_or_above += block.size - low[::-1]
        normal += block.size
    return Ranking(order, starts, scores, above, at_or_above, normal)


def _within(places: Counts, start: int, size: int) -> Counts:
    """Select the places in a block of the flattened masks, counted from the block's start."""
    low, high = np.searchsorted(places, [start, start + size])
    return places[low:high] - start


def _ascending_normal(maps: NDArray[Any], anomalous: Counts) -> NDArray[Any]:
    """Sort the normal pixels of a block.

    Anomalous pixels are overwritten by the lowest value there is and cut off after the sort. That
    is several times faster than picking out the normal ones before it.
    """
    pixels = maps.reshape(-1).astype(_sortable(maps.dtype))  # a copy, always
    lowest = -np.inf if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).min
    pixels[anomalous] = lowest
    pixels.sort()
    return pixels[anomalous.size :]


def _sortable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Choose a dtype that holds the same values and that NumPy sorts fast."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def _places(ascending: NDArray[Any], values: NDArray[Any]) -> tuple[Counts, Counts]:
    """Return how many elements lie below each value, and how many at or below it."""
    below = np.searchsorted(ascending, values, side="left")
    at_or_below = below.copy()
    if ascending.size:  # the second search is for ties only
        tied = np.flatnonzero(ascending[np.minimum(below, ascending.size - 1)] == values)
        tied = tied[below[tied] < ascending.size]
        at_or_below[tied] = np.searchsorted(ascending, values[tied], side="right")
    return below, at_or_below


def auroc(ranking: Ranking) -> float:
    """Return the area under the ROC curve, in [0, 1]; needs a normal item."""
    # Twice the pairs in the wrong order; a tie is half of one.
    lost = int(ranking.sizes @ (ranking.above + ranking.at_or_above))
    pairs = ranking.normal * ranking.anomalous
    return (2 * pairs - lost) / (2 * pairs)


def average_precision(ranking: Ranking) -> float:
    """Return the area under the precision-recall curve as a sum of steps, in (0, 1]."""
    precision = ranking.hits / (ranking.hits + ranking.at_or_above)
    return float(ranking.sizes @ precision / ranking.anomalous)


def f1max(ranking: Ranking) -> tuple[float, Any]:
    """Return the highest F1 of all thresholds, in (0, 1], and the lowest score that reaches it.

    Only anomalous scores can be best: any other threshold adds false positives alone.
    """
    f1 = 2 * ranking.hits / (ranking.hits + ranking.at_or_above + ranking.anomalous)
    best = f1.size - 1 - int(f1[::-1].argmax())
    return float(f1[best]), ranking.scores[best].item()


def area(ranking: Ranking, gains: NDArray[np.float64], limit: float) -> float:
    """Return the area under (false positive rate, cumulated gain) up to ``limit``, over ``limit``.

    A group lifts the curve by its gain, on a straight line from the share a of normal items above
    its score to the share b at or above it. Up to the limit L that adds L - (a + b) / 2 if b <= L,
    and (L - a)^2 / (2 (b - a)) if a < L < b.

    Parameters
    ----------
    ranking : with at least one normal item
    gains : (K,) float64, what each group adds
    limit : upper end of the false positive rate, in (0, 1]
    """
    count = int(np.searchsorted(ranking.above, limit * ranking.normal, side="left"))
    a = ranking.above[:count] / ranking.normal
    b = ranking.at_or_above[:count] / ranking.normal
    inside = b <= limit
    width = np.where(inside, 1.0, b - a)
    part = np.where(inside, limit - (a + b) / 2, np.maximum(limit - a, 0) ** 2 / (2 * width))
    return min(1.0, float(gains[:count] @ part / limit))  # the gains' sum is rounded


def curve(
    ranking: Ranking, gains: NDArray[np.float64], limit: float = 1.0, max_points: int = 1000
) -> Curve:
    """Return points of the curve (false positive rate, cumulated gain), from (0, 0) to its end.

    All corners, if these are few enough. Otherwise up to ``max_points`` of them, none moved,
    spread evenly over both axes, with more of them below ``limit``.

    Returns
    -------
    x, y : (M,) float64, ascending, M <= ``max_points``
    """
    y = np.cumsum(gains) / np.sum(gains)
    corners_x = np.stack([ranking.above, ranking.at_or_above], axis=1).reshape(-1) / ranking.normal
    corners_y = np.stack([np.append(0.0, y[:-1]), y], axis=1).reshape(-1)
    points = np.concatenate([[[0.0, 0.0]], np.stack([corners_x, corners_y], 1), [[1.0, 1.0]]])
    points = points[np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))]
    if len(points) > max_points:
        length = points.sum(axis=1) + np.minimum(points[:, 0] / limit, 1)
        wanted = np.linspace(0, length[-1], max_points)
        points = points[np.unique(np.searchsorted(length, wanted).clip(max=len(points) - 1))]
    return points[:, 0], points[:, 1]


def precision_recall(ranking: Ranking, max_points: int = 1000) -> Curve:
    """Return points (recall, precision) at anomalous scores, recall ascending, (M,) each."""
    keep = np.arange(ranking.hits.size)
    if keep.size > max_points:
        wanted = np.linspace(0, ranking.anomalous, max_points)
        keep = np.unique(np.searchsorted(ranking.hits, wanted).clip(max=keep.size - 1))
    hits = ranking.hits[keep]
    return hits / ranking.anomalous, hits / (hits + ranking.at_or_above[keep])
