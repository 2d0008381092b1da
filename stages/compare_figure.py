"""Draw mean ranks with the groups that tests do not tell apart: a critical-difference diagram.

Demsar's diagram, turned by a right angle, so that each algorithm has a line for its name: a point
at its mean rank, and beside it a column for each group, drawn from its best to its worst member.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from stages.drawing import COLOURS, GREY, PALE

BEST, OTHER = COLOURS[1], COLOURS[0]
ROW, COLUMN = 0.2, 0.16  # inches


def draw(title: str, mean_ranks: Mapping[str, float], test: Mapping[str, Any]) -> Figure:
    """Draw one metric's mean ranks, best first, and the groups of ``tests.json``.

    Groups that hold the best algorithm stand out by their colour and their thicker line.
    """
    ranked = {name: rank for name, rank in mean_ranks.items() if not math.isnan(rank)}
    places = {name: place for place, name in enumerate(ranked)}
    width = max((len(name) for name in ranked), default=0) * 0.075
    groups = test["groups"]
    figure = Figure(
        figsize=(4.6 + width + COLUMN * len(groups), 1.7 + ROW * max(len(ranked), 2)),
        layout="constrained",
    )
    axes, beside = figure.subplots(
        1, 2, sharey=True, width_ratios=[3.4, 0.3 + COLUMN * max(len(groups), 1)]
    )
    best = min(ranked.values(), default=math.nan)
    for name, rank in ranked.items():
        colour = BEST if rank == best else OTHER
        axes.plot([0.5, rank], [places[name]] * 2, color="#E5E5E5", linewidth=0.8, zorder=1)
        axes.plot(rank, places[name], "o", color=colour, markersize=5, zorder=3)
    for column, group in enumerate(groups):
        rows = [places[name] for name in group]
        holds = min(ranked[name] for name in group) == best
        beside.plot(
            [column] * 2, [min(rows) - 0.2, max(rows) + 0.2],
            color=BEST if holds else OTHER, linewidth=4 if holds else 2, solid_capstyle="butt",
        )  # fmt: skip
    labels = [f"{name}  {rank:.2f}" for name, rank in ranked.items()]
    axes.set_yticks(range(len(ranked)), labels, fontsize=8)
    axes.set_ylim(len(ranked) - 0.3, -1.6)
    axes.set_xlim(0.5, max(len(ranked), 2) + 0.5)
    axes.set_xlabel("mean rank over categories (1 is best)")
    difference = test["critical_difference"]
    if difference is not None:
        shown = min(difference, len(ranked) - 1)
        axes.plot([1, 1 + shown], [-0.9, -0.9], "|-", color=GREY, linewidth=1.4)
        text = f"critical difference {difference:.2f}"
        if difference > shown:
            text += ", wider than all ranks"
        axes.text(1, -1.15, text, fontsize=7.5, color=GREY, va="bottom")
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    beside.set_xlim(-0.6, max(len(groups), 1) - 0.4)
    beside.tick_params(left=False, bottom=False, labelbottom=False, labelleft=False)
    beside.spines[:].set_visible(False)
    beside.axvline(-0.6, color=PALE, linewidth=0.4)
    beside.set_xlabel("not told\napart", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
    axes.set_title(caption(test), fontsize=7.5, loc="left", color=GREY)
    return figure


def caption(test: Mapping[str, Any]) -> str:
    """Say in two lines what was tested."""
    friedman, categories = test["friedman"], test["friedman"]["categories"]
    over = f"over {categories} categories" if categories > 1 else "one category"
    if friedman["p"] is None:
        return f"{over}; Friedman test undefined:\n{friedman['reason']}"
    said = f"Friedman test {over}: p = {friedman['p']:.2g}"
    if friedman["p"] > test["alpha"]:
        return f"{said}, not below {test['alpha']:g}:\nno algorithm is told from another"
    return f"{said}\nbars join what Nemenyi's test does not tell apart at {test['alpha']:g}"


def describe(metric: str, mean_ranks: Mapping[str, float], test: Mapping[str, Any]) -> str:
    """Say what the figure shows, for those who do not see it."""
    ranked = [f"{name} {rank:.2f}" for name, rank in mean_ranks.items() if not math.isnan(rank)]
    groups = "; ".join(", ".join(group) for group in test["groups"]) or "none"
    difference = test["critical_difference"]
    width = "undefined" if difference is None else f"{difference:.2f}"
    return (
        f"Mean ranks of algorithms by {metric}, best first: {', '.join(ranked) or 'none defined'}. "
        f"{caption(test)}. Critical difference: {width}. Groups not told apart: {groups}."
    ).replace("\n", " ")
