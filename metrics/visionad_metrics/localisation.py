"""Proportion Localised: the share of anomalies whose box a map finds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visionad_metrics.boxes import Box, Floats, Integers, given_runs, nearest_box
from visionad_metrics.localisation_options import below_one, resolve
from visionad_metrics.localisation_overlaps import OverlapsOfMasks, find_overlaps
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Order = Literal["worst", "best", "spread"]


@dataclass(frozen=True, eq=False)
class PLResult(MetricResult):
    """Proportion Localised with what it was made from, for A anomalies and T thresholds.

    Attributes
    ----------
    ious : (T, A) float64, overlap of prediction and box at each threshold
    thresholds : (T,) float64, ascending; of the negated maps if ``negated``
    best : the lowest of the thresholds that localise most
    boxes : A boxes, image by image
    shape : (H, W) of the images
    negated : whether lower values were taken as more anomalous
    """

    ious: Floats = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    thresholds: Floats = field(default_factory=lambda: np.empty(0), repr=False)
    best: int = 0
    boxes: tuple[Box, ...] = field(default=(), repr=False)
    shape: tuple[int, int] = (0, 0)
    negated: bool = False

    @property
    def images(self) -> Integers:
        """The image of each anomaly, (A,)."""
        return np.array([box.image for box in self.boxes], np.int64)

    @property
    def corners(self) -> Floats:
        """The corners of each box, (A, 4, 2) in x, y; whole numbers are pixel centres."""
        return np.array([box.corners for box in self.boxes]).reshape(-1, 4, 2)

    @property
    def localised(self) -> NDArray[np.bool]:
        """Whether each anomaly is localised at the best threshold, (A,)."""
        if not self.boxes:
            return np.empty(0, np.bool)
        return np.asarray(self.ious[self.best] > self.details["iou_limit"])

    def of_image(self, image: int) -> list[Box]:
        """Return the boxes of one image; cells are numbered in their order."""
        return [box for box in self.boxes if box.image == image]

    def cells(self, image: int) -> Integers:
        """Return the number of the nearest box for each pixel of one image, (H, W)."""
        return nearest_box(self.of_image(image), self.shape)

    def box_masks(self, image: int) -> NDArray[np.bool]:
        """Return the pixels of the k boxes of one image, (k, H, W)."""
        masks = [box.mask(self.shape) for box in self.of_image(image)]
        return np.array(masks, np.bool).reshape(-1, *self.shape)

    def draw(
        self,
        images: ArrayLike,
        maps: ArrayLike,
        masks: ArrayLike | None = None,
        rows: int = 6,
        order: Order = "worst",
    ) -> "Figure":
        """Draw anomalies with their boxes, predictions and overlaps, one in each row.

        Parameters
        ----------
        images : (N, H, W) or (N, H, W, 3), uint8 or in [0, 1]
        maps, masks : (N, H, W), what the metric was computed from
        rows : how many anomalies to show
        order : those with the "worst" or "best" overlap, or a "spread" from worst to best

        Raises
        ------
        ValueError
            If no anomaly was measured, or an argument is not as described.
        """
        from visionad_metrics.localisation_figure import draw

        return draw(self, images, maps, masks, rows, order)


def localise(
    samples: Samples,
    iou_limit: float,
    preset: str,
    overrides: Mapping[str, Any],
    boxes: Sequence[Any] | None = None,
) -> PLResult:
    """Compute Proportion Localised, see ``catalogue.pl.pl``; ``boxes`` stand in for masks."""
    below_one("iou_limit", iou_limit)
    options = resolve(preset, overrides)
    if boxes is None:
        found = samples.once(OverlapsOfMasks(options))
    else:
        found = find_overlaps(samples, given_runs(boxes, samples.shape), options)
    if not found:
        return PLResult.undefined("no anomalous pixel" if boxes is None else "no box")
    # Of equal directions the reverse is taken, as by the package.
    chosen = max(reversed(found), key=lambda overlaps: overlaps.localised(iou_limit).max())
    localised = chosen.localised(iou_limit)
    best = int(localised.argmax())
    return PLResult(
        value=float(localised[best]),
        curve={"threshold": chosen.thresholds, "localised": localised},
        details={
            "iou_limit": float(iou_limit),
            "preset": preset,
            "options": asdict(options),
            "anomalies": len(chosen.boxes),
            "anomalous_images": len({box.image for box in chosen.boxes}),
            "threshold": float(chosen.thresholds[best]),
            "negated": chosen.negated,
        },
        ious=chosen.ious,
        thresholds=chosen.thresholds,
        best=best,
        boxes=chosen.boxes,
        shape=samples.shape[1:],
        negated=chosen.negated,
    )
