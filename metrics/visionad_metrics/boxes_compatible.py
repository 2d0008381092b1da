"""Boxes as other programs make them, for comparison with numbers they published.

opencv and shapely are imported on use: a program that asks for no rotated box needs neither.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from visionad_metrics.boxes import Box, Floats, clip, find_extents, rectangle, window
from visionad_metrics.regions import Runs


def visionad_boxes(runs: Runs, shape: tuple[int, int], min_side: float) -> Iterator[Box]:
    """Make boxes as VisionAD did before it used the package, but clamped to the image.

    A side is measured without its last pixel, and a grown one has an even number of pixels. The
    box is filled without its last row and column, then united with the region. (VisionAD's own
    box was empty if it began left of or above the image.) Parameters as of ``axis_boxes``.
    """
    size = np.array(shape[::-1])
    extents = find_extents(runs)
    low, high = extents.low, extents.high
    centre = (low + high) / 2
    grown = high - low < size // (1 / min_side)
    half = size // (2 / min_side)
    start = clip(np.trunc(np.where(grown, centre - half, low)), shape)
    stop = clip(np.trunc(np.where(grown, centre + half, high)), shape)
    first, last = np.minimum(start, low), np.maximum(stop, high + 1)
    for j, image in enumerate(extents.image.tolist()):
        fill = np.zeros(last[j, ::-1] - first[j, ::-1], np.bool)
        fill[window(start[j] - first[j], stop[j] - first[j])] = True
        x, y = first[j]
        for run in range(extents.runs[j], extents.runs[j + 1]):
            fill[runs.row[run] - y, runs.left[run] - x : runs.right[run] - x + 1] = True
        sides = (stop[j] - start[j]).astype(np.float64)
        corners = rectangle((start[j] + stop[j] - 1) / 2, sides)
        yield Box(image, centre[j], sides, corners, window(first[j], last[j]), fill)


def rotated_boxes(runs: Runs, shape: tuple[int, int], min_side: float) -> Iterator[Box]:
    """Make the rectangles of least area, as the package proportion-localised does.

    Sides are measured between pixel centres; the one nearer to the x axis is compared with the
    image's width. Corners are cut to whole pixels, and the outline belongs to the box.
    Parameters as of ``axis_boxes``.
    """
    cv2 = _optional("cv2")
    extents = find_extents(runs)
    width, height = (size // (1 / min_side) for size in shape[::-1])
    for j, image in enumerate(extents.image.tolist()):
        mine = slice(extents.runs[j], extents.runs[j + 1])
        columns = np.append(runs.left[mine], runs.right[mine])
        ends = np.stack([columns, np.tile(runs.row[mine], 2)], axis=1).astype(np.int32)
        centre, (along, across), angle = cv2.minAreaRect(ends)
        level = abs(np.cos(np.deg2rad(angle))) >= np.sqrt(0.5)
        least = (width, height) if level else (height, width)
        sides = max(along, least[0]), max(across, least[1])
        corners = cv2.boxPoints((centre, sides, angle))
        outline = np.trunc(corners)
        filled = cv2.fillPoly(np.zeros(shape, np.uint8), [outline.astype(np.int32)], 1)
        pixels = window(clip(outline.min(axis=0), shape), clip(outline.max(axis=0) + 1, shape))
        fill = filled[pixels].astype(np.bool)
        yield Box(image, np.array(centre), np.array(sides), corners.astype(float), pixels, fill)


def unite(runs: Runs, boxes: Sequence[Box], limit: float, upright: bool) -> Runs:
    """Make one region of those whose boxes overlap by more than ``limit`` of the smaller box.

    Parameters
    ----------
    runs : sorted by region
    boxes : one for each region, in order
    limit : share of the box whose sum of sides is smaller
    upright : whether all boxes are, so that no geometry library is needed

    Returns
    -------
    Runs
        Sorted by region, whose numbers are those of each group's first, closed up.
    """
    pairs = _touching_pairs(boxes)
    corners = np.array([box.corners for box in boxes])
    sides = np.array([box.sides for box in boxes])
    one, other = corners[pairs[0]], corners[pairs[1]]
    shared = _shared_area(one, other) if upright else _shared_area_rotated(one, other)
    first_is_smaller = sides.sum(axis=1)[pairs[0]] < sides.sum(axis=1)[pairs[1]]
    smaller = sides.prod(axis=1)[np.where(first_is_smaller, *pairs)]
    linked = shared > limit * smaller
    links = coo_array((linked[linked], pairs[:, linked]), shape=(len(boxes), len(boxes)))
    groups = connected_components(links, directed=False)[1]
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return by_region(replace(runs, region=np.argsort(np.argsort(first))[inverse][runs.region]))


def by_region(runs: Runs) -> Runs:
    """Sort runs by region."""
    order = np.argsort(runs.region, kind="stable")
    return Runs(
        *(getattr(runs, name)[order] for name in ("image", "row", "left", "right", "region"))
    )


def _touching_pairs(boxes: Sequence[Box]) -> Any:
    """Return pairs (2, P) int64 of boxes of one image whose upright hulls overlap."""
    images = np.array([box.image for box in boxes])
    low = np.array([box.corners.min(axis=0) for box in boxes])
    high = np.array([box.corners.max(axis=0) for box in boxes])
    found = [np.empty((2, 0), np.int64)]
    for j in range(len(boxes)):
        end = np.searchsorted(images, images[j], side="right")
        near = ((low[j + 1 : end] < high[j]) & (high[j + 1 : end] > low[j])).all(axis=1)
        others = j + 1 + np.flatnonzero(near)
        found.append(np.stack([np.full_like(others, j), others]))
    return np.concatenate(found, axis=1)


def _shared_area(one: Floats, other: Floats) -> Floats:
    """Return the areas (P,) that pairs of upright rectangles (P, 4, 2) share."""
    low = np.maximum(one.min(axis=1), other.min(axis=1))
    high = np.minimum(one.max(axis=1), other.max(axis=1))
    return np.asarray((high - low).clip(0).prod(axis=1))


def _shared_area_rotated(one: Floats, other: Floats) -> Floats:
    shapely = _optional("shapely")
    shared = shapely.intersection(shapely.polygons(one), shapely.polygons(other))
    return np.asarray(shapely.area(shared))


def _optional(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"rotated boxes need {module}: pip install 'visionad-metrics[rotated]'"
        ) from error
