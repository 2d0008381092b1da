"""Draw one data set's leaderboard: values (the paper's Figure 5), and what they cost.

One figure per metric. Each algorithm is a point, its mean over categories, with an error bar of one
standard deviation over categories (n - 1 in the denominator) and, where the run compares
algorithms, a broad bar: the bootstrap interval of the mean. The dashed line is the best mean; the
caption counts how many other algorithms' error bars hold it. Accuracy against time and memory is
drawn by :mod:`stages.cost_figures`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from stages import cost_figures
from stages.aggregate import COSTS, LONG, pivot, read_table
from stages.artifacts.files import StageError, atomic_path
from stages.artifacts.job import Job
from stages.command import Options, run
from stages.drawing import COLOURS, PALE, STYLE, save

OTHER, BEST = COLOURS[:2]
MEAN = "mean"  # as a category of the intervals
INTERVALS = ["algorithm", "category", "metric", "low", "high"]


@dataclass(frozen=True)
class Intervals:
    """Bootstrap intervals of means over categories, by algorithm; nan where undefined."""

    lows: pd.Series
    highs: pd.Series
    confidence: float


def read_intervals(path: Path, metric: str, confidence: float) -> Intervals:
    """Read the intervals of one metric from the table that stage `compare` wrote.

    Raises
    ------
    StageError
        If the file is missing or not of this version.
    """
    types: dict[Any, Any] = {**dict.fromkeys(INTERVALS, "str"), "low": float, "high": float}
    try:
        rows = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])[INTERVALS]
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{path}: not intervals of this version ({error}); run snakemake again"
        ) from None
    means = rows[(rows["metric"] == metric) & (rows["category"] == MEAN)].set_index("algorithm")
    return Intervals(means["low"], means["high"], confidence)


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

    def text(self, algorithm: str) -> str:
        """Write one algorithm's mean and deviation: `0.948 ± 0.012`."""
        mean, std = self.means[algorithm], self.stds[algorithm]
        text = "undefined" if pd.isna(mean) else f"{mean:.3f}"
        return text if pd.isna(std) else f"{text} ± {std:.3f}"

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


def draw(
    table: pd.DataFrame, title: str, metric: str, intervals: Intervals | None = None
) -> Figure:
    """Draw a sorted table categories x algorithms as points with error bars."""
    ranking = Ranking.of(table)
    count = len(ranking.means)
    row = 0.3 if count <= 20 else 0.22  # inches: thirty-five still fit on a page
    figure = Figure(figsize=(7.0, 1.5 + row * count), layout="constrained")
    axes = figure.subplots()
    caption = ranking.caption(len(table))
    if intervals is not None:
        names = [name for name in ranking.means.index if name in intervals.lows.index]
        bars = pd.DataFrame({"low": intervals.lows, "high": intervals.highs}).loc[names].dropna()
        order = list(ranking.means.index)
        places = [order.index(name) for name in bars.index]
        style: Any = {"linewidth": 26 * row, "color": OTHER, "alpha": 0.3, "zorder": 1.5}
        axes.hlines(places, bars["low"], bars["high"], **style)
        caption += f"\nbroad bars: {intervals.confidence:.0%} bootstrap intervals of the means"
    defined = ranking.means.dropna()
    lows, highs = defined - ranking.stds.fillna(0), defined + ranking.stds.fillna(0)
    if intervals is not None and len(defined):
        lows, highs = lows.combine(bars["low"], min), highs.combine(bars["high"], max)
    if len(defined):
        # The bars are drawn whole: one that passes 1 says that the values are far from normal.
        span = max(highs.max() - lows.min(), 0.02)
        axes.set_xlim(lows.min() - 0.04 * span, highs.max() + 0.04 * span)
        if axes.get_xlim()[1] > 1:
            axes.axvline(1, color=PALE, linewidth=0.8)
        axes.axvline(ranking.best, color=BEST, linestyle="--", linewidth=1.2)
    for place, (mean, std) in enumerate(zip(ranking.means, ranking.stds, strict=True)):
        if pd.notna(mean):
            colour = BEST if mean == ranking.best else OTHER
            error = None if pd.isna(std) else std
            axes.errorbar(mean, place, xerr=error, color=colour, fmt="o")
        beside = axes.get_yaxis_transform()  # x in fractions of the axes, y in rows
        text = ranking.text(str(ranking.means.index[place]))
        axes.text(1.02, place, text, transform=beside, va="center_baseline")
    axes.set_yticks(range(count), list(ranking.means.index))
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlabel(f"{metric}, mean over {len(table)} categories" if len(table) > 1 else metric)
    axes.grid(axis="x")
    figure.suptitle(title, x=0.01, ha="left")
    axes.set_title(caption, loc="left")
    return figure


def describe(table: pd.DataFrame, title: str, metric: str) -> str:
    """Say in words what :func:`draw` shows."""
    ranking = Ranking.of(table)
    values = ", ".join(f"{name} {ranking.text(str(name))}" for name in ranking.means.index)
    caption = ", ".join(ranking.caption(len(table)).splitlines())
    return f"{title}: {metric} of {len(ranking.means)} algorithms, best first: {values}; {caption}."


def body(job: Job, options: Options) -> dict[str, Any]:
    """Draw the leaderboard of the job's data set."""
    parameters = job.parameters
    formats, dpi = parameters["figures"]["formats"], parameters["figures"]["dpi"]
    long, costs = read_table(job.input("long"), LONG), read_table(job.input("costs"), COSTS)
    metrics = parameters["metrics"]
    title = f"{parameters['title']} ({job.key['dataset']})"
    tables = {metric: pivot(long, metric, parameters["categories"]) for metric in metrics}
    with mpl.rc_context(STYLE):
        with atomic_path(job.outputs["figures"]) as folder:
            folder.mkdir()
            for metric, table in tables.items():
                intervals = None
                if "significance" in job.inputs:
                    path = job.input("significance") / "intervals.csv"
                    intervals = read_intervals(path, metric, parameters["confidence"])
                figure = draw(table, title, metric, intervals)
                save(figure, folder, metric, formats, dpi, describe(table, title, metric))
        with atomic_path(job.outputs["costs"]) as folder:
            folder.mkdir()
            for metric, table in tables.items():
                for cost in cost_figures.AXES:
                    points = cost_figures.points_of(table, costs, cost)
                    figure = cost_figures.draw(points, title, metric, cost)
                    words = cost_figures.describe(points, title, metric, cost)
                    save(figure, folder, f"{metric}_{cost.name}", formats, dpi, words)
    return {"figures": len(metrics) * (1 + len(cost_figures.AXES))}


if __name__ == "__main__":
    run("figures", __doc__, body)
