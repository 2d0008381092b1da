"""Draw what Proportion Localised compares: one anomaly in each row."""

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visionad_metrics.localisation_options import one_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from visionad_metrics.localisation import PLResult

# Okabe and Ito's colours, which the colour-blind tell apart too.
REGION, BOX, PREDICTION = "#E69F00", "#0072B2", "#CC79A7"
FOUND, MISSED, WRONG, IGNORED = "#009E73", "#56B4E9", "#D55E00", "#BBBBBB"
TITLES = ("image", "region and box", "map and prediction", "what counts")
SIDE = 1.6  # inches of a panel's width


def draw(
    result: "PLResult",
    images: ArrayLike,
    maps: ArrayLike,
    masks: ArrayLike | None,
    rows: int,
    order: str,
) -> "Figure":
    """Draw anomalies of a result; see ``PLResult.draw``."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch

    shown = choose(result, rows, order)
    height, width = result.shape
    size = (4 * SIDE + 0.3, len(shown) * SIDE * height / width + 0.5)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, dpi=150, layout=layout, facecolor="white")
    panels = figure.subplots(len(shown), 4, squeeze=False)
    for axes, anomaly in zip(panels, shown, strict=True):
        image = result.boxes[anomaly].image
        mask = None if masks is None else np.asarray(_at(masks, image, "masks"))
        _draw_row(
            axes, result, anomaly, _at(images, image, "images"), _at(maps, image, "maps"), mask
        )
    for panel, title in zip(panels[0], TITLES, strict=True):
        panel.set_title(title, fontsize=8)
    colours = {
        "region": REGION,
        "box": BOX,
        "prediction": PREDICTION,
        "found": FOUND,
        "missed": MISSED,
        "too much": WRONG,
        "ignored": IGNORED,
    }
    figure.legend(
        handles=[Patch(color=colour, label=label) for label, colour in colours.items()],
        loc="outside lower center",
        ncols=len(colours),
        fontsize=7,
        frameon=False,
        handlelength=1,
        columnspacing=1.2,
    )
    return figure


def choose(result: "PLResult", rows: int, order: str) -> list[int]:
    """Choose up to ``rows`` anomalies by their overlap at the best threshold."""
    one_of("order", order, ("worst", "best", "spread"))
    if not isinstance(rows, Integral) or rows < 1:
        raise ValueError(f"rows must be a whole number of at least 1, got {rows!r}")
    if not result.boxes:
        raise ValueError(f"there is nothing to draw: {result.reason}")
    ascending = np.argsort(result.ious[result.best], kind="stable").tolist()
    if order == "best":
        ascending.reverse()
    rows = min(int(rows), len(ascending))
    if order == "spread":
        return [ascending[i] for i in np.linspace(0, len(ascending) - 1, rows).round().astype(int)]
    return ascending[:rows]


def _draw_row(
    axes: NDArray[Any],
    result: "PLResult",
    anomaly: int,
    image: NDArray[Any],
    values: NDArray[Any],
    mask: NDArray[Any] | None,
) -> None:
    box = result.boxes[anomaly]
    boxes = result.of_image(box.image)
    number = boxes.index(box)
    inside = box.mask(result.shape)
    own = result.cells(box.image) == number
    sign = -1.0 if result.negated else 1.0
    above = sign * np.asarray(values, np.float64) > result.thresholds[result.best]
    iou = result.ious[result.best, anomaly]

    height, width = result.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # an image may be larger than its map
    shade = {"cmap": "gray", "vmin": 0, "vmax": 255 if image.dtype == np.uint8 else 1}
    for panel in axes[:2]:
        panel.imshow(image, extent=extent, **(shade if image.ndim == 2 else {}))
    for other in boxes:
        _outline_box(axes[1], other.corners, other is box)
    if mask is not None:
        _outline(axes[1], mask, REGION)
    axes[2].imshow(values, cmap="gray")
    _outline(axes[2], above, PREDICTION)
    axes[3].imshow(_classes(above, inside, own))
    _outline(axes[3], inside, BOX)
    axes[0].set_ylabel(f"image {box.image}", fontsize=7)
    sign_of = ">" if result.localised[anomaly] else "≤"
    axes[3].set_ylabel(f"IoU {iou:.2f} {sign_of} {result.details['iou_limit']:g}", fontsize=7)
    axes[3].yaxis.set_label_position("right")
    for panel in axes:
        panel.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
        panel.spines[:].set(linewidth=0.5, color="#888888")


def _classes(
    above: NDArray[np.bool], inside: NDArray[np.bool], own: NDArray[np.bool]
) -> NDArray[np.float64]:
    """Colour each pixel (H, W, 3) by what it is to the overlap; white is rightly left out."""
    from matplotlib.colors import to_rgb

    colours = np.ones((*above.shape, 3))
    colours[~own] = to_rgb(IGNORED)
    colours[inside & above] = to_rgb(FOUND)
    colours[inside & ~above] = to_rgb(MISSED)
    colours[own & ~inside & above] = to_rgb(WRONG)
    return colours


def _outline(panel: "Axes", mask: NDArray[Any], colour: str) -> None:
    if mask.any():
        # One pixel around: a region at the image's border has an outline there too.
        padded = np.pad(mask.astype(float), 1)
        x, y = (np.arange(-1, size - 1) for size in padded.shape[::-1])
        panel.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=0.8)


def _outline_box(panel: "Axes", corners: NDArray[Any], own: bool) -> None:
    x, y = corners[[0, 1, 2, 3, 0]].T
    if own:
        panel.plot(x, y, color="white", linewidth=2.6, alpha=0.6)  # a seam, for dark images
    panel.plot(x, y, color=BOX, linewidth=1.8 if own else 1, linestyle="-" if own else ":")


def _at(arrays: ArrayLike, image: int, name: str) -> NDArray[Any]:
    """Return one image of an array, which may lie on disk."""
    count = len(arrays)  # type: ignore[arg-type]
    if image >= count:
        raise ValueError(f"{name} must hold all images that were measured, got {count}")
    return np.asarray(arrays[image])  # type: ignore[index]
