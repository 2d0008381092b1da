"""Areas under curves of pixels, pixel AUROC and AUPRO, on resamples of the images; exact.

An anomalous pixel p of image i with gain g loses what share of normal pixels lies above it. Over
drawn images, image j drawn w_j times, that share is a sum of w_j n_j(p), where n_j(p) counts normal
pixels of image j alone. So without a limit the area is bilinear in the weights: the sum over i and
j of w_i w_j T_ij, where T_ij sums g n_j(p) over the pixels of image i.

With a limit (AUPRO) that is true of the pixels whose false positive rate stays below it, and which
these are depends on the weights. Anomalous scores are therefore cut into blocks. For each resample
the blocks wholly below the limit are summed as above, and the one that it cuts is gone through
score by score, exactly as ``ranking.area`` does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionad_metrics.samples import Samples, anomalous_pixels, anomalous_scores

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCKS = 256  # of anomalous scores; a resample goes through one of them


class UndefinedError(ValueError):
    """A metric is undefined on these images, whatever is drawn: says why."""


@dataclass(frozen=True, eq=False)
class _Table:
    """All pixels of N images among the K different anomalous scores, the highest first.

    Attributes
    ----------
    group, image : (P,) of each anomalous pixel the number of its score, and its image
    above, at_or_above : by image the group from which on each of its normal pixels lies above a
        score, or at or above it; ascending
    groups : K
    """

    group: NDArray[np.int32]
    image: NDArray[np.int32]
    above: list[NDArray[np.int32]]
    at_or_above: list[NDArray[np.int32]]
    groups: int

    @property
    def normal(self) -> Floats:
        """Normal pixels of each image, (N,)."""
        return np.array([one.size for one in self.above], np.float64)

    def sums(self, image: int) -> Integers:
        """Add normal pixels of one image above each score and those at or above it, (K,)."""
        both = np.bincount(self.above[image], minlength=self.groups + 1)
        both += np.bincount(self.at_or_above[image], minlength=self.groups + 1)
        return np.cumsum(both[:-1])

    def counts(self, groups: Integers) -> tuple[Floats, Floats]:
        """Count normal pixels above some scores (n,), and at or above them, by image: (N, n)."""
        above, at_or_above = (
            np.array([np.searchsorted(one, groups, side="right") for one in places], np.float64)
            for places in (self.above, self.at_or_above)
        )
        return above, at_or_above


def _tabulate(samples: Samples) -> _Table:
    images, height, width = samples.shape
    places = anomalous_pixels(samples)
    if not places.size:
        raise UndefinedError("no anomalous pixel")
    if places.size == images * height * width:
        raise UndefinedError("no normal pixel")
    ascending, group = np.unique(anomalous_scores(samples), return_inverse=True)
    above: list[NDArray[np.int32]] = []
    at_or_above: list[NDArray[np.int32]] = []
    for _, maps, masks in samples.blocks():
        for values, mask in zip(maps, masks, strict=True):
            normal = np.sort(values[~mask])
            below = np.searchsorted(ascending, normal)  # how many scores each pixel lies above
            tied = ascending.take(below, mode="clip") == normal
            for kept, scores in ((above, below), (at_or_above, below + tied)):
                kept.append((ascending.size - scores[::-1]).astype(np.int32))
    return _Table(
        (ascending.size - 1 - group).astype(np.int32),
        (places // (height * width)).astype(np.int32),
        above,
        at_or_above,
        ascending.size,
    )


def resampled_area(samples: Samples, gains: Floats, limit: float, weights: Floats) -> Floats:
    """Compute the area up to a false positive rate, over ``limit``, on resamples.

    Parameters
    ----------
    samples : maps and masks of N images
    gains : (P,) what each anomalous pixel adds to the curve's height, in their own order; the
        height is divided by the sum over the drawn images
    limit : in (0, 1]
    weights : (B, N) float64, how often each image is drawn

    Returns
    -------
    (B,) float64; nan where no anomalous or no normal pixel is drawn

    Raises
    ------
    UndefinedError
        If there is no anomalous or no normal pixel at all.
    """
    table = samples.once(_tabulate)
    images, image = np.unique(table.image, return_inverse=True)
    drawn = weights[:, images]  # (B, D) of the images with anomalous pixels
    highest = limit * (weights @ table.normal)
    whole = drawn @ np.bincount(image, gains)
    with np.errstate(invalid="ignore", divide="ignore"):
        if limit == 1:
            pairs = _pairs(table, gains, image, np.array([table.groups]), drawn, weights)[:, 0]
            return np.asarray((2 * highest * whole - pairs) / (2 * highest * whole))
        starts = np.unique(np.linspace(0, table.groups, BLOCKS + 1).astype(np.int64))
        below = weights @ table.counts(starts[1:] - 1)[1]  # at each block's last score, (B, C)
        block = (below <= np.floor(highest)[:, None]).sum(axis=1)  # which one the limit cuts
        cuts = np.unique(block)
        edges = np.append(starts, table.groups)[cuts]
        pairs = _pairs(table, gains, image, edges, drawn, weights)
        lost = pairs[np.arange(len(weights)), np.searchsorted(cuts, block)] / (2 * highest)
        for cut in cuts[cuts < starts.size - 1]:
            rows = block == cut
            lost[rows] += _beyond(
                table, gains, image, (starts[cut], starts[cut + 1]),
                drawn[rows], weights[rows], highest[rows],
            )  # fmt: skip
        return np.asarray(1 - lost / whole)


def _pairs(
    table: _Table, gains: Floats, image: Integers, edges: Integers, drawn: Floats, weights: Floats
) -> Floats:
    """Sum gains times normal pixels above and at or above, twice the loss, before some groups.

    Returns
    -------
    (B, E) for each of E ascending ``edges`` the sum over all groups before it
    """
    part = np.searchsorted(edges, table.group, side="right")
    counted = np.flatnonzero(part < edges.size)
    bins = image[counted] * edges.size + part[counted]
    group, gains = table.group[counted], gains[counted]
    size = drawn.shape[1] * edges.size
    result = np.zeros((len(weights), edges.size))
    for j in range(weights.shape[1]):
        sums = np.bincount(bins, gains * table.sums(j)[group], size)
        before = np.cumsum(sums.reshape(-1, edges.size), axis=1)
        result += weights[:, j, None] * (drawn @ before)
    return result


def _beyond(
    table: _Table,
    gains: Floats,
    image: Integers,
    groups: tuple[int, int],
    drawn: Floats,
    weights: Floats,
    highest: Floats,
) -> Floats:
    """Compute what is lost from a block on that the limit cuts: see ``ranking.area``.

    Parameters
    ----------
    groups : the block's first score and the one after its last
    drawn, weights, highest : of the b resamples whose limit lies in this block

    Returns
    -------
    (b,) float64
    """
    first, stop = groups
    inside = (table.group >= first) & (table.group < stop)
    bins = image[inside] * (stop - first) + table.group[inside] - first
    size = drawn.shape[1] * (stop - first)
    gained = drawn @ np.bincount(bins, gains[inside], size).reshape(drawn.shape[1], -1)
    above, at_or_above = (weights @ one for one in table.counts(np.arange(first, stop)))
    limit = highest[:, None]
    missed = (above + at_or_above) / (2 * limit)
    crossing = (at_or_above > np.floor(limit)) & (above < limit)
    width = np.where(crossing, at_or_above - above, 1)
    reached = (limit - above) ** 2 / (2 * width * limit)
    share = np.where(at_or_above <= np.floor(limit), missed, np.where(crossing, 1 - reached, 1))
    after = table.group >= stop
    rest = drawn @ np.bincount(image[after], gains[after], drawn.shape[1])
    return np.asarray((gained * share).sum(axis=1) + rest)
