"""Accuracy against what it costs, and the Pareto front (EfficientAD's Figures 1 and 8).

An algorithm is on the front if no other is at least as accurate at no more cost, and better in one
of the two. Up to ten algorithms are named at their points; more are numbered, and named beside the
plot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from stages.aggregate import unique
from stages.drawing import COLOURS, GREY

ALL, FRONT = COLOURS[:2]
NAMED = 10
# Where a label may stand, in points from its point; the first free place is taken.
STEPS = (7, 11, 16, 22, 29, 37)
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
ABOVE = ((0, 1), (-1, 1), (-1, 0), (1, 1), (1, -1))  # of the front, whose line goes right and down


@dataclass(frozen=True)
class Axis:
    """One kind of cost: where it stands in `costs.csv` and how it is written."""

    name: str
    column: str
    factor: float
    label: str
    unit: str
    most: bool  # the largest of all runs, instead of their mean


AXES = (
    Axis(
        "latency",
        "inference_seconds_per_image",
        1e3,
        "inference, ms per image (mean over runs)",
        "ms",
        most=False,
    ),
    Axis(
        "memory", "peak_rss_bytes", 1e-6, "peak memory of training, MB (largest)", "MB", most=True
    ),
)


def points_of(table: pd.DataFrame, costs: pd.DataFrame, cost: Axis) -> pd.DataFrame:
    """Join accuracy and cost.

    Parameters
    ----------
    table
        A metric, categories x algorithms, best algorithm first.
    costs
        The rows of `costs.csv`.
    cost
        Which cost.

    Returns
    -------
    pandas.DataFrame
        By algorithm: `value` (the mean over categories), `cost`, `front`; in the table's order. nan
        where undefined, and never on the front then.
    """
    runs = costs.groupby("algorithm")[cost.column]
    spent = (runs.max() if cost.most else runs.mean()).astype("float64") * cost.factor
    points = pd.DataFrame({"value": table.mean(skipna=False)})
    points["cost"] = spent.reindex(points.index)
    points["front"] = on_front(points["value"], points["cost"])
    points.attrs["machine"] = machine(costs)
    return points


def on_front(values: pd.Series, costs: pd.Series) -> pd.Series:
    """Mark what no other beats: (n,) bool. Equal points are on the front together."""
    value, cost = values.to_numpy(), costs.to_numpy()
    beaten = [
        bool((((value >= v) & (cost <= c)) & ((value > v) | (cost < c))).any())
        for v, c in zip(value, cost, strict=True)
    ]
    return ~pd.Series(beaten, index=values.index) & values.notna() & costs.notna()


def machine(costs: pd.DataFrame) -> str:
    """Say on what was measured, and warn where that is more than one machine."""
    kinds = costs[["processor", "gpu", "threads"]].drop_duplicates()
    if len(kinds) > 1:
        return "measured on different machines or threads: not to be compared in cost"
    return (
        f"measured on {unique(costs['processor'])}, {unique(costs['threads'])} thread(s), "
        f"GPU {unique(costs['gpu'], missing='none')}"
    )


def missing(points: pd.DataFrame) -> str:
    """Name algorithms that have no point, if any."""
    names = list(points.index[points[["value", "cost"]].isna().any(axis=1)])
    return f"undefined, hence not shown: {', '.join(names)}" if names else ""


def draw(points: pd.DataFrame, title: str, metric: str, cost: Axis) -> Figure:
    """Draw :func:`points_of`: cost on a logarithmic axis, the front as a line."""
    shown = points.dropna(subset=["value", "cost"])
    numbered = len(shown) > NAMED
    figure = Figure(figsize=(7.0, 4.4 if len(shown) <= 20 else 5.6), layout="constrained")
    axes = figure.subplots()
    front = shown[shown["front"]].sort_values(["cost", "value"])
    axes.set_xscale("log")
    if len(front):
        axes.step(front["cost"], front["value"], where="post", color=FRONT, label="Pareto front")
    for rows, colour, order in ((shown[~shown["front"]], ALL, 3), (front, FRONT, 4)):
        axes.plot(rows["cost"], rows["value"], "o", color=colour, zorder=order)
    if len(shown):
        low, high = shown["cost"].min(), shown["cost"].max()
        axes.set_xlim(low / 1.25, high * 1.25 if numbered else high * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(cost.label)
    axes.set_ylabel(f"{metric}, mean over categories")
    axes.grid()
    if cost.name == "latency":
        above = axes.secondary_xaxis("top", functions=(per_second, per_second))
        above.set_xlabel("images per second")
        above.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        above.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        above.xaxis.set_minor_formatter(NullFormatter())
    names = {name: str(place) for place, name in enumerate(shown.index, 1)} if numbered else {}
    if numbered:
        key = "\n".join(f"{number:>2}  {name}" for name, number in names.items())
        axes.text(1.02, 1, key, transform=axes.transAxes, va="top", fontsize=7.5)
    figure.suptitle(title, x=0.01, ha="left")
    said = filter(None, (points.attrs["machine"], missing(points)))
    axes.set_title("\n".join(said), loc="left")
    place_labels(axes, shown, lambda name: names.get(name, name), small=numbered)
    return figure


def per_second(milliseconds: Any) -> Any:
    """Images per second from milliseconds per image, and back."""
    with np.errstate(divide="ignore"):  # matplotlib tries 0, too
        return 1e3 / np.asarray(milliseconds, dtype=float)


def place_labels(axes: Axes, points: pd.DataFrame, text: Callable[[str], str], small: bool) -> None:
    """Write each point's label where it covers no other label or point; the front's first."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what was measured stays where it is
    scale = figure.dpi / 72
    centres = dict(
        zip(points.index, axes.transData.transform(points[["cost", "value"]]), strict=True)
    )
    taken = [Bbox.from_bounds(x - 3 * scale, y - 3 * scale, 6 * scale, 6 * scale)
             for x, y in centres.values()]  # fmt: skip
    for name in points.sort_values("front", ascending=False, kind="stable").index:
        label = axes.annotate(
            text(str(name)),
            points.loc[name, ["cost", "value"]].to_numpy(dtype=float),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7.5 if small else 8.5,
            color=FRONT if points.loc[name, "front"] else GREY,
            va="center",
            ha="center",
            zorder=5,
        )
        label.set_in_layout(False)
        box = label.get_window_extent(renderer)
        places = [
            (dx * (step * scale + box.width / 2 - 3 * scale), dy * (step + 2) * scale)
            for step in STEPS
            for dx, dy in (ABOVE if points.loc[name, "front"] else DIRECTIONS)
        ]
        free = [
            (dx, dy)
            for dx, dy in places
            if not any(box.translated(dx, dy).padded(1).overlaps(other) for other in taken)
            and axes.bbox.fully_containsx(box.x0 + dx)
            and axes.bbox.fully_containsx(box.x1 + dx)
            and axes.bbox.fully_containsy(box.y0 + dy)
            and axes.bbox.fully_containsy(box.y1 + dy)
        ]
        dx, dy = (free or places)[0]
        label.set_position((dx / scale, dy / scale))
        taken.append(box.translated(dx, dy))
        if dx**2 + dy**2 > (STEPS[1] * scale + box.width / 2) ** 2:
            ends = axes.transData.inverted().transform(
                [centres[name], centres[name] + 0.8 * np.array([dx, dy])]
            )
            axes.plot(*ends.T, color=GREY, linewidth=0.5, zorder=2)


def describe(points: pd.DataFrame, title: str, metric: str, cost: Axis) -> str:
    """Say in words what :func:`draw` shows."""
    rows = points.dropna(subset=["value", "cost"]).sort_values("cost")
    words = [
        f"{name} {metric} {row['value']:.3f} at {row['cost']:.3g} {cost.unit}"
        + (" (Pareto front)" if row["front"] else "")
        for name, row in rows.iterrows()
    ]
    said = "; ".join(filter(None, [*words, missing(points), points.attrs["machine"]]))
    return f"{title}: {metric} against {cost.label}: {said}."
