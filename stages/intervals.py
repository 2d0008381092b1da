"""Join values of one data set's leaderboard with their replicates, and make intervals of both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.aggregate import headline
from stages.artifacts.files import StageError
from stages.artifacts.resampled import ResampledRun, read_resampled
from visionad_metrics.bootstrap import interval, over_seeds

MEAN = "mean"
INTERVALS = [
    "algorithm", "category", "metric", "value", "low", "high", "seeds", "images", "reason",
]  # fmt: skip
# The reason of an interval that has ends, and yet says little.
ALIKE = "resamples are all alike: these images cannot show how sure the value is"
SAME = 1e-9  # what summing in another order may change


@dataclass(frozen=True, eq=False)
class Cell:
    """What is known of one algorithm in one category, or on average."""

    value: float
    replicates: np.ndarray  # (B,), mean over drawn seeds; empty where there are none
    influence: np.ndarray  # (M,) of the images, category after category
    reason: str | None
    seeds: int
    images: int


def read_runs(paths: Iterable[Path]) -> dict[tuple[str, str, int], ResampledRun]:
    """Read all replicates: by algorithm, category and seed."""
    runs = {}
    for path in paths:
        one = read_resampled(path)
        seed = int(one.key["seed"].removeprefix("seed"))
        runs[one.key["algorithm"], one.key["category"], seed] = one
    return runs


def cells(
    metric: str,
    long: pd.DataFrame,
    runs: Mapping[tuple[str, str, int], ResampledRun],
    parameters: Mapping[str, Any],
) -> dict[str, dict[str, Cell]]:
    """Join values and replicates of one metric: by algorithm and category.

    Raises
    ------
    StageError
        If a run has no replicates, or they belong to another value than the leaderboard's.
    """
    found: dict[str, dict[str, Cell]] = {}
    shown = headline(long, metric)
    keys = list(zip(shown["algorithm"], shown["category"], shown["seed"], strict=True))
    values_of = dict(zip(keys, shown["value"], strict=True))
    reason_of = dict(zip(keys, shown["reason"], strict=True))
    for algorithm, category in itertools.product(
        parameters["algorithms"], parameters["categories"]
    ):
        values, replicates, influences, reasons, images = [], [], [], [], 0
        for seed in parameters["seeds"]:
            key = (algorithm, category, seed)
            one = runs[key].metrics.get(metric) if key in runs else None
            if one is None:
                raise StageError(
                    f"{metric} of {algorithm}, {category}, seed {seed}: no replicates; "
                    "run snakemake again"
                )
            value = float(values_of[key])
            if not math.isnan(one.value) and not abs(one.value - value) <= SAME:
                raise StageError(
                    f"{metric} of {algorithm}, {category}, seed {seed}: the leaderboard says "
                    f"{value!r}, its bootstrap {one.value!r}: visionad_metrics/bootstrap.py does "
                    f"not compute what visionad_metrics/catalogue computes"
                )
            values.append(value)
            replicates.append(one.values)
            influences.append(one.influence)
            if math.isnan(value):
                reasons.append(str(reason_of[key]))
            elif not one.values.size:
                reasons.append(str(one.reason))
            images = runs[key].good_images + runs[key].defective_images
        drawn = influence = np.empty(0)
        if not reasons:
            name = f"{algorithm}/{category}"
            drawn = over_seeds(np.stack(replicates), parameters["seed"], name)
            influence = np.mean(influences, axis=0)
        cell = Cell(
            float(np.mean(values)), drawn, influence, "; ".join(dict.fromkeys(reasons)) or None,
            len(values), images,
        )  # fmt: skip
        found.setdefault(algorithm, {})[category] = cell
    return found


def mean_of(by_category: Mapping[str, Cell]) -> Cell:
    """Average an algorithm over its categories; the resamples of one have no part in another's."""
    one = list(by_category.values())
    reasons = [f"{name}: {cell.reason}" for name, cell in by_category.items() if cell.reason]
    replicates = influence = np.empty(0)
    if not reasons:
        replicates = np.mean([cell.replicates for cell in one], axis=0)
        influence = np.concatenate([cell.influence for cell in one]) / len(one)
    return Cell(
        float(np.mean([cell.value for cell in one])), replicates, influence,
        "; ".join(reasons) or None, one[0].seeds, sum(cell.images for cell in one),
    )  # fmt: skip


def interval_rows(
    metric: str, found: Mapping[str, Mapping[str, Cell]], confidence: float
) -> list[dict[str, Any]]:
    """Lay out the intervals of one metric as rows of ``INTERVALS``; means come last."""
    rows = []
    for algorithm, by_category in found.items():
        for category, cell in [*by_category.items(), (MEAN, mean_of(by_category))]:
            low, high, reason = ends(cell, confidence)
            names = (algorithm, category, metric, cell.value, low, high, cell.seeds, cell.images)
            rows.append(dict(zip(INTERVALS, (*names, cell.reason or reason), strict=True)))
    return rows


def difference(one: Cell, other: Cell) -> Cell:
    """Subtract what is known of another algorithm on the same images."""
    reasons = [cell.reason for cell in (one, other) if cell.reason]
    replicates = influence = np.empty(0)
    if not reasons:
        replicates = one.replicates - other.replicates
        influence = one.influence - other.influence
    return Cell(
        one.value - other.value,
        replicates,
        influence,
        "; ".join(reasons) or None,
        one.seeds,
        one.images,
    )


def ends(cell: Cell, confidence: float) -> tuple[float, float, str | None]:
    """Return both ends of an interval, nan without replicates, and what is doubtful about it."""
    if not cell.replicates.size:
        return math.nan, math.nan, None
    low, high = interval(cell.value, cell.replicates, cell.influence, confidence)
    return low, high, ALIKE if low == high else None
