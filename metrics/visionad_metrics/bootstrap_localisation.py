"""Proportion Localised on resamples of the images; exact.

The anomalies of a drawn image count as often as it is drawn. The thresholds lie between the lowest
and the highest value of the drawn images, so that they, too, differ from resample to resample. An
anomaly's overlap as a function of the threshold is a stair that other images have no part in: it
is made once, over all values in the anomaly's cell and box, and then only looked up.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionad_metrics.bootstrap_areas import UndefinedError
from visionad_metrics.boxes import Box, Floats, nearest_box
from visionad_metrics.boxes_compatible import by_region
from visionad_metrics.localisation_options import below_one, resolve
from visionad_metrics.localisation_overlaps import find_boxes
from visionad_metrics.regions import find_runs
from visionad_metrics.samples import Samples


def resampled_pl(
    samples: Samples,
    weights: Floats,
    iou_limit: float = 0.3,
    preset: str = "paper",
    **overrides: Any,
) -> Floats:
    """Compute Proportion Localised, see ``catalogue.pl.pl``, on resamples (B, N): (B,).

    Raises
    ------
    UndefinedError
        If there is no anomaly, or thresholds are percentiles: those of all values of all drawn
        images would have to be found anew for every resample.
    """
    below_one("iou_limit", iou_limit)
    options = resolve(preset, overrides)
    if options.thresholds == "percentile":
        raise UndefinedError("no bootstrap is known for pl with thresholds at percentiles")
    boxes = find_boxes(by_region(samples.once(find_runs)), samples.shape[1:], options)
    if not boxes:
        raise UndefinedError("no anomalous pixel")
    by_image = {image: list(group) for image, group in groupby(boxes, lambda box: box.image)}
    maps = dict(_maps_of(samples, by_image))
    images = np.array(list(by_image))
    drawn = weights[:, images]  # (B, D)
    anomalies = np.repeat(drawn, [len(group) for group in by_image.values()], axis=1)  # (B, A)
    best = np.zeros(len(weights))
    for sign in (1, -1) if options.direction == "both" else (1,):
        values = [sign * one.astype(np.float64) for one in maps.values()]
        thresholds, which = _thresholds(values, drawn, options.n_thresholds)
        found = np.concatenate(
            [
                _localised(one, by_image[image], thresholds, iou_limit)
                for image, one in zip(by_image, values, strict=True)
            ]
        ).astype(np.float64)  # (A, U, T)
        for number in range(len(thresholds)):
            rows = which == number
            counts = (anomalies[rows] @ found[:, number]).max(axis=1)
            best[rows] = np.maximum(best[rows], counts)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(anomalies.any(axis=1), best / anomalies.sum(axis=1), np.nan))


def _maps_of(samples: Samples, images: Any) -> Iterator[tuple[int, NDArray[Any]]]:
    for first, maps, _ in samples.blocks():
        for image, values in enumerate(maps, start=first):
            if image in images:
                yield image, values


def _thresholds(
    values: Sequence[Floats], drawn: Floats, count: int
) -> tuple[Floats, NDArray[np.intp]]:
    """Return U different sets of thresholds (U, T), and which one each resample has, (B,)."""
    low, high = (np.array([end(one) for one in values]) for end in (np.min, np.max))
    present = drawn > 0
    lowest = np.where(present, low, np.inf).min(axis=1)
    highest = np.where(present, high, -np.inf).max(axis=1)
    nothing = ~present.any(axis=1)
    lowest[nothing] = highest[nothing] = 0
    ends, which = np.unique(np.stack([lowest, highest], axis=1), axis=0, return_inverse=True)
    return np.linspace(ends[:, 0], ends[:, 1], count + 2, axis=1)[:, 1:-1], which.reshape(-1)


def _localised(
    values: Floats, boxes: Sequence[Box], thresholds: Floats, iou_limit: float
) -> NDArray[np.bool]:
    """Tell which anomalies of one image are localised at each of some thresholds.

    Parameters
    ----------
    values : (H, W) the image's map
    boxes : its k boxes
    thresholds : (U, T)

    Returns
    -------
    (k, U, T) bool
    """
    cells = nearest_box(boxes, values.shape)
    found = np.empty((len(boxes), *thresholds.shape), np.bool)
    for number, box in enumerate(boxes):
        inside = box.mask(values.shape)
        own = inside | (cells == number)
        order = np.argsort(values[own])[::-1]
        hits = np.append(0, np.cumsum(inside[own][order]))
        outside = np.arange(hits.size) - hits
        overlaps = hits / (outside + box.size) > iou_limit  # by how many pixels are predicted
        ascending = values[own][order[::-1]]
        predicted = order.size - np.searchsorted(ascending, thresholds, side="right")
        found[number] = overlaps[predicted]
    return found
