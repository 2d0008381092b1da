"""Rank analysis from one sort, exact with ties.

What decides is, for each anomalous score, how many normal scores lie above it and how many at or
above it. These counts stay integers until the last division, and scores are only compared, so
their dtype does not matter and a strictly increasing transform changes nothing.

Anomalous pixels are few. So the many normal ones are sorted without their places (several times
faster than an argsort), block by block, and then only looked up; the curves of all metrics have
their corners at anomalous scores, so nothing else is needed.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionad_metrics.samples import (
    Places,
    Samples,
    anomalous_pixels,
    anomalous_scores,
    index_type,
)

Counts = NDArray[np.int64]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Anomalous items by score, highest first; equal scores form one of K groups.

    Attributes
    ----------
    order : (P,) integers, which item stands at each rank
    starts : (K,) integers, the rank of each group's first item
    scores : (K,) the score of each group, strictly descending
    above, at_or_above : (K,) int64, normal items above each score, and those at or above it
    normal : the number of normal items
    """

    order: Places
    starts: Places
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
        return np.append(self.starts[1:], self.anomalous).astype(np.int64)

    @cached_property
    def sizes(self) -> Counts:
        """Anomalous items of each group, (K,)."""
        return np.diff(self.hits, prepend=0)

    def group_sums(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum weights (P,), given in the items' own order, over each group: (K,)."""
        return np.asarray(np.add.reduceat(weights[self.order], self.starts))


def rank(normal: NDArray[Any], anomalous: NDArray[Any]) -> Ranking:
    """Rank anomalous scores (P,), P >= 1, among normal ones (N,)."""
    return _rank(anomalous, [np.sort(normal)])


def rank_images(samples: Samples) -> Ranking | None:
    """Rank the defective images' scores among the good ones'; None if no image is defective."""
    scores, defective = samples.image
    return rank(scores[~defective], scores[defective]) if defective.any() else None


def rank_pixels(samples: Samples) -> Ranking | None:
    """Rank all anomalous pixels among all normal ones; None if there is no anomalous pixel.

    Items are the anomalous pixels in the order of :func:`samples.anomalous_pixels`. Ask for it by
    ``samples.once(rank_pixels)``, so that all metrics share the sort.
    """
    places = anomalous_pixels(samples)
    if not places.size:
        return None
    return _rank(anomalous_scores(samples), _normal_blocks(samples, places))


def _normal_blocks(samples: Samples, places: Places) -> Iterator[NDArray[Any]]:
    """Yield all normal pixels in ascending blocks, of which each overwrites the one before it."""
    images, height, width = samples.shape
    pixels = height * width
    buffer = np.empty(
        (max(1, min(images, samples.block_pixels // pixels)), height, width),
        _sortable(samples.dtype),
    )
    filled = 0
    for first, maps in samples.map_blocks():
        buffer[filled : filled + len(maps)] = maps
        filled += len(maps)
        end = first + len(maps)
        if end == images or filled + len(maps) > len(buffer):
            yield _ascending_normal(
                buffer[:filled].reshape(-1),
                _within(places, (end - filled) * pixels, filled * pixels),
            )
            filled = 0


def _rank(anomalous: NDArray[Any], blocks: Iterable[NDArray[Any]]) -> Ranking:
    """Rank anomalous scores (P,) among normal ones that come in ascending blocks."""
    order = np.argsort(anomalous)[::-1].astype(index_type(anomalous.size))
    descending = anomalous[order]
    starts = np.flatnonzero(np.append(True, descending[1:] != descending[:-1])).astype(order.dtype)
    ascending = descending[starts[::-1]]
    del descending
    above, at_or_above = np.zeros((2, starts.size), np.int64)
    normal = 0
    for block in blocks:
        low, high = _places(block, ascending)
        above -= high[::-1]
        at_or_above -= low[::-1]
        normal += block.size
        del low, high  # before the next block is read
    above += normal
    at_or_above += normal
    return Ranking(order, starts, ascending[::-1], above, at_or_above, normal)


def _within(places: Places, start: int, size: int) -> Places:
    """Select the places in a block of the flattened masks, counted from the block's start."""
    low, high = np.searchsorted(places, [start, start + size])
    return places[low:high] - start


def _ascending_normal(pixels: NDArray[Any], anomalous: Places) -> NDArray[Any]:
    """Sort the normal pixels of a block in place.

    Anomalous pixels are overwritten by the lowest value there is and cut off after the sort. That
    is several times faster than picking out the normal ones before it.
    """
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
    if not ascending.size:
        return below, below
    at_or_below = below.copy()  # the second search is for ties only
    tied = ascending.take(below, mode="clip") == values
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
    highest = limit * ranking.normal
    whole = int(np.searchsorted(ranking.at_or_above, math.floor(highest), side="right"))
    missed = (ranking.above[:whole] + ranking.at_or_above[:whole]) / (2 * highest)
    total = np.sum(gains[:whole] * (1 - missed))
    if whole < gains.size and ranking.above[whole] < highest:  # the one group that is cut
        a, b = ranking.above[whole], ranking.at_or_above[whole]
        total += gains[whole] * (highest - a) ** 2 / (2 * (b - a) * highest)
    return float(total / np.sum(gains))  # exactly 1 where nothing is missed


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
    y = np.cumsum(gains)
    size = 2 * y.size

    def corners(which: Counts) -> NDArray[np.float64]:
        group = which // 2  # it starts at an even corner and ends at the odd one after it
        x = np.where(which % 2, ranking.at_or_above[group], ranking.above[group])
        before = np.where(group, y[group - 1], 0)
        return np.stack([x / ranking.normal, np.where(which % 2, y[group], before) / y[-1]])

    def length(which: Counts) -> NDArray[np.float64]:
        x, height = corners(which)
        return x + height + np.minimum(x / limit, 1)

    if size <= max_points - 2:
        inner = np.arange(size)
    else:
        wanted = np.linspace(0, 3, max_points)[1:-1]
        inner = np.unique(_first_to_reach(wanted, length, size))
    points = np.concatenate([[[0], [0]], corners(inner), [[1], [1]]], axis=1)
    x, height = points[:, np.append(True, (np.diff(points) != 0).any(axis=0))]
    return x, height


def _first_to_reach(
    wanted: NDArray[np.float64], ascending: Callable[[Counts], NDArray[np.float64]], size: int
) -> Counts:
    """Search sorted values, of which there are ``size``, that are computed only where asked for."""
    low, high = np.zeros(wanted.size, np.int64), np.full(wanted.size, size - 1)
    while (low < high).any():
        middle = (low + high) // 2
        short = (low < high) & (ascending(middle) < wanted)
        low, high = np.where(short, middle + 1, low), np.where(short, high, middle)
    return low


def precision_recall(ranking: Ranking, max_points: int = 1000) -> Curve:
    """Return points (recall, precision) at anomalous scores, recall ascending, (M,) each."""
    keep = np.arange(min(ranking.hits.size, max_points))
    if ranking.hits.size > max_points:
        wanted = np.linspace(0, ranking.anomalous, max_points).astype(np.int64)
        keep = np.unique(np.searchsorted(ranking.hits, wanted).clip(max=ranking.hits.size - 1))
    hits = ranking.hits[keep]
    return hits / ranking.anomalous, hits / (hits + ranking.at_or_above[keep])
