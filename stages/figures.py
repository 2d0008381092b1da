"""Draw one data set's leaderboard, one figure per metric (the paper's Figure 5).

Each algorithm is a point, its mean over categories, with an error bar of one standard deviation
over categories (n - 1 in the denominator). The dashed line is the best mean; the caption counts
how many other algorithms' error bars hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from stages.aggregate import LONG, pivot, read_table
from stages.artifacts.files import atomic_path
from stages.artifacts.job import Job
from stages.command import Options, run
from stages.drawing import STYLE, save

BEST, OTHER, PALE = "#D55E00", "#0072B2", "#999999"  # of Okabe and Ito: safe for colour-blind eyes
FONT_SIZE = 9.0


@dataclass(frozen=True)
class Ranking:
    """Algorithms with their mean over categories, best first, and what the error bars say."""

    means: pd.Series
    stds: pd.Series  # nan with a single category, or where the mean is undefined

    @classmethod
    def of(cls, table: pd.DataFrame) -> Ranking:
        """Rank a table categories x algorithms that :func:`stages.aggregate.pivot` sorted."""
        return cls(table.mean(skipna=False), table.std(ddof=1, skipna=False))

    @property
    def best(self) -> float:
        """The best mean; nan if none is defined."""
        return float(self.means.max())

    def holding_best(self) -> int:
        """Count algorithms other than the first whose mean ± deviation holds the best mean."""
        return int((self.means + self.stds >= self.best).iloc[1:].sum())

    def caption(self, categories: int) -> str:
        """Say what the error bars are and how many hold the best mean."""
        if pd.isna(self.best):
            return "undefined for every algorithm: see leaderboard.md for the reasons"
        if categories < 2:
            return "one category: no standard deviation"
        others = self.means.count() - 1
        return (
            f"error bars: standard deviation over {categories} categories (n − 1)\n"
            f"those of {self.holding_best()} of {others} other algorithms hold the best mean"
        )


def draw(table: pd.DataFrame, title: str, metric: str) -> Figure:
    """Draw a sorted table categories x algorithms as points with error bars."""
    ranking = Ranking.of(table)
    count = len(ranking.means)
    figure = Figure(figsize=(7.0, 1.5 + 0.3 * count), layout="constrained")
    axes = figure.subplots()
    defined = ranking.means.dropna()
    lows, highs = defined - ranking.stds.fillna(0), defined + ranking.stds.fillna(0)
    if len(defined):
        # The bars are drawn whole: one that passes 1 says that the values are far from normal.
        span = max(highs.max() - lows.min(), 0.02)
        axes.set_xlim(lows.min() - 0.04 * span, highs.max() + 0.04 * span)
        if axes.get_xlim()[1] > 1:
            axes.axvline(1, color=PALE, linewidth=0.8)
        axes.axvline(ranking.best, color=BEST, linestyle="--", linewidth=1.2)
    for place, (mean, std) in enumerate(zip(ranking.means, ranking.stds, strict=True)):
        error = None if pd.isna(std) else std
        colour = BEST if mean == ranking.best else OTHER
        if pd.notna(mean):
            style: Any = {"fmt": "o", "markersize": 5, "capsize": 3, "linewidth": 1.4}
            axes.errorbar(mean, place, xerr=error, color=colour, **style)
        text = "undefined" if pd.isna(mean) else f"{mean:.3f}"
        text += "" if error is None else f" ± {std:.3f}"
        beside = axes.get_yaxis_transform()  # x in fractions of the axes, y in rows
        axes.text(1.02, place, text, transform=beside, va="center_baseline")
    axes.set_yticks(range(count), list(ranking.means.index))
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlabel(f"{metric}, mean over {len(table)} categories" if len(table) > 1 else metric)
    axes.grid(axis="x", color="#E5E5E5")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    axes.set_title(ranking.caption(len(table)), fontsize=8, loc="left", color="#444444")
    return figure


def body(job: Job, options: Options) -> dict[str, Any]:
    """Draw the leaderboard of the job's data set."""
    parameters = job.parameters
    settings = parameters["figures"]
    long = read_table(job.input("long"), LONG)
    with (
        atomic_path(job.outputs["figures"]) as folder,
        mpl.rc_context(STYLE | {"font.size": FONT_SIZE}),
    ):
        folder.mkdir()
        for metric in parameters["metrics"]:
            table = pivot(long, metric, parameters["categories"])
            title = f"{parameters['title']} ({job.key['dataset']})"
            save(draw(table, title, metric), folder, metric, settings["formats"], settings["dpi"])
    return {"figures": len(parameters["metrics"])}


if __name__ == "__main__":
    run("figures", __doc__, body)
