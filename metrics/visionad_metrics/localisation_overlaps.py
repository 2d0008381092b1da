"""Overlaps of predictions with boxes, at all thresholds at once.

A map's values matter only in their places among the thresholds. So each pixel becomes the number
of thresholds below it, its level; one histogram of levels for each cell of an image and one for
each box then hold what all thresholds need: cumulated from above, they count predicted pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionad_metrics.boxes import Box, Floats, Integers, axis_boxes, nearest_box
from visionad_metrics.boxes_compatible import by_region, rotated_boxes, unite, visionad_boxes
from visionad_metrics.localisation_options import Options
from visionad_metrics.regions import Runs, find_runs
from visionad_metrics.samples import Samples


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Overlaps of one direction, before a limit is set.

    Attributes
    ----------
    boxes : A boxes, image by image
    thresholds : (T,) float64, ascending
    ious : (T, A) float64
    negated : whether the maps were negated
    """

    boxes: tuple[Box, ...]
    thresholds: Floats
    ious: Floats
    negated: bool

    def localised(self, iou_limit: float) -> Floats:
        """Return the share of anomalies with a larger overlap, (T,)."""
        return np.asarray((self.ious > iou_limit).mean(axis=1))


@dataclass(frozen=True)
class OverlapsOfMasks:
    """What to ask ``samples.once`` for, so that several limits share one calculation."""

    options: Options

    def __call__(self, samples: Samples) -> list[Overlaps]:
        return find_overlaps(samples, samples.once(find_runs), self.options)


def find_overlaps(samples: Samples, runs: Runs, options: Options) -> list[Overlaps]:
    """Overlap predictions with boxes in each direction; an empty list if there is no region."""
    boxes = find_boxes(by_region(runs), samples.shape[1:], options)
    if not boxes:
        return []
    by_image = {image: list(group) for image, group in groupby(boxes, lambda box: box.image)}
    maps = partial(_maps_of, samples, by_image)
    signs = (1, -1) if options.direction == "both" else (1,)
    thresholds = _find_thresholds(maps(), signs, options)
    ious = np.empty((len(signs), options.n_thresholds, len(boxes)))
    start = 0
    for image, values in maps():
        cells = nearest_box(by_image[image], values.shape)
        stop = start + len(by_image[image])
        for direction, sign in enumerate(signs):
            levels = _find_levels(sign * values.astype(np.float64), thresholds[direction])
            ious[direction, :, start:stop] = box_overlaps(
                levels, cells, by_image[image], options.n_thresholds
            )
        start = stop
    return [
        Overlaps(tuple(boxes), *one) for one in zip(thresholds, ious, (False, True), strict=False)
    ]


def find_boxes(runs: Runs, shape: tuple[int, int], options: Options) -> list[Box]:
    """Make one box for each region, or for each group of regions that are merged."""
    make = {"axis": axis_boxes, "rotated": rotated_boxes, "visionad": visionad_boxes}[options.box]
    boxes = list(make(runs, shape, options.min_side))
    for _ in range(2 if options.merge and boxes else 0):  # a merged box may reach one more
        runs = unite(runs, boxes, options.overlap_limit, upright=options.box != "rotated")
        boxes = list(make(runs, shape, options.min_side))
    return boxes


def box_overlaps(
    levels: Integers, cells: Integers, boxes: Sequence[Box], n_thresholds: int
) -> Floats:
    """Return the overlaps of all thresholds with the boxes of one image.

    A prediction for box j lies in cell j or in the box, so what it has outside the box is what
    cell j has there. Its union with the box is then the box and that.

    Parameters
    ----------
    levels : (H, W) how many thresholds lie below each pixel
    cells : (H, W) whose cell each pixel is in
    boxes : k boxes
    n_thresholds : T

    Returns
    -------
    (T, k) float64
    """
    steps = n_thresholds + 1
    joint = np.bincount((cells * steps + levels).reshape(-1), minlength=len(boxes) * steps)
    counts = np.empty((2, steps, len(boxes)), np.int64)
    for j, box in enumerate(boxes):
        inside = levels[box.window][box.fill]
        own = inside[cells[box.window][box.fill] == j]
        counts[0, :, j] = np.bincount(inside, minlength=steps)
        counts[1, :, j] = joint[j * steps : (j + 1) * steps] - np.bincount(own, minlength=steps)
    # Threshold i is passed by all levels above i.
    hits, outside = counts[:, ::-1].cumsum(axis=1)[:, -2::-1]
    return np.asarray(hits / (outside + [box.size for box in boxes]))


def _maps_of(samples: Samples, images: Iterable[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read the maps (H, W) of these images, in order."""
    for first, maps, _ in samples.blocks():
        for image, values in enumerate(maps, start=first):
            if image in images:
                yield image, values


def _find_thresholds(
    maps: Iterator[tuple[int, NDArray[Any]]], signs: Sequence[int], options: Options
) -> list[Floats]:
    """Return thresholds (T,) between the ends of all values, or at their percentiles."""
    count = options.n_thresholds
    if options.thresholds == "linear":
        ends = np.array([(values.min(), values.max()) for _, values in maps], np.float64)
        return [
            np.linspace(np.min(sign * ends), np.max(sign * ends), count + 2)[1:-1] for sign in signs
        ]
    ordered = np.concatenate([values.reshape(-1) for _, values in maps])
    ordered.sort()
    place, rest = np.divmod(np.arange(1, count + 1) * (ordered.size - 1), count + 1)
    found = []
    for sign in signs:
        below = sign * ordered[::sign][place].astype(np.float64)
        above = sign * ordered[::sign][place + (rest > 0)].astype(np.float64)
        found.append(below + (above - below) * (rest / (count + 1)))
    return found


def _find_levels(values: Floats, thresholds: Floats) -> NDArray[Any]:
    """Return how many thresholds lie below each value, in the smallest dtype that holds it.

    A comparison is so much faster than a step of a binary search that 25 take half the time.
    """
    levels = np.zeros(values.shape, np.min_scalar_type(thresholds.size))
    for threshold in thresholds:
        levels += values > threshold
    return levels
