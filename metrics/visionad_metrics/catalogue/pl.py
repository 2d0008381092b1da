"""Proportion Localised, the paper's measure of localisation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from visionad_metrics.localisation import PLResult, localise
from visionad_metrics.localisation_options import BoxKind, Direction, Thresholds
from visionad_metrics.registry import register
from visionad_metrics.samples import Samples


def pl(
    maps: ArrayLike,
    masks: ArrayLike | None,
    iou_limit: float = 0.3,
    preset: str = "paper",
    *,
    boxes: Sequence[Any] | None = None,
    box: BoxKind | None = None,
    merge: bool | None = None,
    thresholds: Thresholds | None = None,
    direction: Direction | None = None,
    min_side: float | None = None,
    n_thresholds: int | None = None,
    overlap_limit: float | None = None,
) -> PLResult:
    """Share of anomalies that are localised, at the one threshold where most are.

    Every 8-connected region of a mask is an anomaly. The box around it, with sides of at least
    1/8 of the image's, is what has to be predicted. Pixels above the threshold count for the
    anomaly whose box has the nearest centre, and for every box they are in. An anomaly is
    localised if the intersection over union of these pixels and its box exceeds the limit.
    The 25 thresholds lie evenly between the lowest and the highest value of anomalous images,
    without these ends, as in the authors' code; the paper leaves that open.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous; None will do with ``boxes``
    iou_limit : what the overlap must exceed, in [0, 1)
    preset : "paper", as above; "package_0_1_1" or "package_0_1_3", as the package
        proportion-localised; or "visionad", as VisionAD before it used the package
    boxes : in place of the masks' regions, N sequences of (top, left, bottom, right), half-open
        whole pixel edges of one anomaly each
    box, merge, thresholds, direction, min_side, n_thresholds, overlap_limit :
        replace what the preset says; see ``localisation_options.Options``

    Returns
    -------
    PLResult
        Value in [0, 1] with the curve (threshold, localised) and the overlaps of all anomalies;
        nan without anomalous pixels. Maps that are constant get 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    ImportError
        If rotated boxes are asked for and opencv or shapely is not installed.

    References
    ----------
    VisionAD (TMLR 2024, openreview o5kYH7bNe3), section "Proportion Localised", Algorithm 1.
    """
    if boxes is not None:
        masks = np.broadcast_to(np.False_, np.shape(maps))
    overrides = {
        "box": box,
        "merge": merge,
        "thresholds": thresholds,
        "direction": direction,
        "min_side": min_side,
        "n_thresholds": n_thresholds,
        "overlap_limit": overlap_limit,
    }
    return localise(Samples(maps, masks), iou_limit, preset, overrides, boxes)


@register("pl", level="pixel")
def contract(
    samples: Samples,
    iou_limit: float = 0.3,
    preset: str = "paper",
    box: str | None = None,
    merge: bool | None = None,
    thresholds: str | None = None,
    direction: str | None = None,
    min_side: float | None = None,
    n_thresholds: int | None = None,
    overlap_limit: float | None = None,
) -> PLResult:
    """Compute ``pl`` on samples."""
    overrides = {
        "box": box,
        "merge": merge,
        "thresholds": thresholds,
        "direction": direction,
        "min_side": min_side,
        "n_thresholds": n_thresholds,
        "overlap_limit": overlap_limit,
    }
    return localise(samples, iou_limit, preset, overrides)
