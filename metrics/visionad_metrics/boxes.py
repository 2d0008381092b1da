"""Boxes that anomalies have to be localised in, and the cells of an image between them.

All coordinates are x, y with whole numbers at pixel centres, as ``imshow`` draws them. A box may
reach over the image's border; its pixels do not.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionad_metrics.regions import Runs

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Box:
    """The grown box of one anomaly.

    Attributes
    ----------
    image : the image it is in
    centre : (2,) float64
    sides : (2,) float64, width and height along the box's own axes
    corners : (4, 2) float64, in order around the box
    window : rows and columns of the image that hold its pixels
    fill : (h, w) bool, which pixels of the window are the box's
    """

    image: int
    centre: Floats
    sides: Floats
    corners: Floats
    window: tuple[slice, slice]
    fill: NDArray[np.bool]

    @property
    def size(self) -> int:
        """The number of its pixels."""
        return int(np.count_nonzero(self.fill))

    def mask(self, shape: tuple[int, int]) -> NDArray[np.bool]:
        """Return its pixels in an image of shape (H, W)."""
        mask = np.zeros(shape, np.bool)
        mask[self.window] = self.fill
        return mask


@dataclass(frozen=True, eq=False)
class Extents:
    """What A regions span; runs must be sorted by region.

    Attributes
    ----------
    image : (A,) int64
    low, high : (A, 2) int64, first and last column and row
    runs : (A + 1,) int64, a region's runs are those from one number to the next
    """

    image: Integers
    low: Integers
    high: Integers
    runs: Integers


def axis_boxes(runs: Runs, shape: tuple[int, int], min_side: float) -> Iterator[Box]:
    """Make boxes from the first to the last pixel; a pixel is in a box if its centre is.

    Parameters
    ----------
    runs : sorted by region
    shape : (H, W) of the images
    min_side : least side as a share of the image's; a smaller one grows around the centre
    """
    size = np.array(shape[::-1])
    extents = find_extents(runs)
    centre = (extents.low + extents.high) / 2
    sides = np.maximum(extents.high - extents.low + 1, size * min_side)
    start = clip(np.ceil(centre - sides / 2), shape)
    stop = clip(np.ceil(centre + sides / 2), shape)
    for j, image in enumerate(extents.image.tolist()):
        fill = np.ones(stop[j, ::-1] - start[j, ::-1], np.bool)
        corners = rectangle(centre[j], sides[j])
        yield Box(image, centre[j], sides[j], corners, window(start[j], stop[j]), fill)


def nearest_box(boxes: Sequence[Box], shape: tuple[int, int]) -> Integers:
    """Return for each pixel of one image (H, W) which box's centre is nearest, the first on ties.

    Without a box all pixels are in cell 0.
    """
    cells = np.zeros(shape, np.int64)
    if len(boxes) < 2:
        return cells
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    nearest = np.full(shape, np.inf)
    for number, box in enumerate(boxes):  # one at a time: memory does not grow with their number
        x, y = box.centre
        distance = (columns - x) ** 2 + (rows - y) ** 2
        cells[distance < nearest] = number
        np.minimum(nearest, distance, out=nearest)
    return cells


def given_runs(boxes: Sequence[Any], shape: tuple[int, int, int]) -> Runs:
    """Turn boxes into regions that fill them.

    Parameters
    ----------
    boxes : N sequences of (top, left, bottom, right), half-open whole pixel edges
    shape : (N, H, W) of the images

    Raises
    ------
    ValueError
        If they are not N sequences of boxes inside the image.
    """
    images, height, width = shape
    if len(boxes) != images:
        raise ValueError(
            f"boxes must have one entry per image: {images} images, {len(boxes)} given"
        )
    runs: list[tuple[int, int, int, int, int]] = []
    region = 0
    for image, entry in enumerate(boxes):
        if not isinstance(entry, Iterable):
            raise ValueError(f"boxes[{image}] must be a sequence of boxes, got {entry!r}")
        for number, box in enumerate(entry):
            edges = np.asarray(box)
            if edges.shape != (4,) or edges.dtype.kind not in "iuf":
                edges = np.full(4, -1)
            top, left, bottom, right = edges.tolist()
            inside = 0 <= top < bottom <= height and 0 <= left < right <= width
            if not inside or (edges != np.trunc(edges)).any():
                raise ValueError(
                    f"boxes[{image}][{number}] must be (top, left, bottom, right) in whole pixels "
                    f"with 0 <= top < bottom <= {height} and 0 <= left < right <= {width}, "
                    f"got {box!r}"
                )
            for row in range(int(top), int(bottom)):
                runs.append((image, row, int(left), int(right) - 1, region))
            region += 1
    return Runs(*np.array(runs, np.int64).reshape(-1, 5).T)


def find_extents(runs: Runs) -> Extents:
    """Find what each region spans."""
    first = np.flatnonzero(np.diff(runs.region, prepend=-1))
    if not first.size:
        empty = np.empty((0, 2), np.int64)
        return Extents(runs.image, empty, empty, np.zeros(1, np.int64))
    low = np.stack([np.minimum.reduceat(x, first) for x in (runs.left, runs.row)], axis=1)
    high = np.stack([np.maximum.reduceat(x, first) for x in (runs.right, runs.row)], axis=1)
    return Extents(runs.image[first], low, high, np.append(first, runs.region.size))


def clip(points: Floats, shape: tuple[int, int]) -> Integers:
    """Clip pixel edges (..., 2), given as x and y, to an image (H, W)."""
    return np.clip(points, 0, np.array(shape[::-1])).astype(np.int64)


def window(start: Integers, stop: Integers) -> tuple[slice, slice]:
    """Select rows and columns from ``start`` (2,) to before ``stop`` (2,), given as x and y."""
    return slice(start[1], stop[1]), slice(start[0], stop[0])


def rectangle(centre: Floats, sides: Floats) -> Floats:
    """Return the corners (4, 2) of an upright rectangle."""
    return centre + sides / 2 * [[-1, -1], [1, -1], [1, 1], [-1, 1]]
