"""The numbers that the report's scripts show: a leaderboard's tables, laid out as nested lists.

Values are by category and seed, `null` where undefined; scripts take means, spreads and ranks of
what a reader chooses. Six digits are kept.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.aggregate import MEAN, headline, with_means_of_types
from stages.artifacts.files import StageError, read_json
from stages.published import measured_on

INTERVALS = ("algorithm", "category", "metric", "low", "high")
PAIRS = (
    "metric", "first", "second", "difference", "low", "high", "p_nemenyi", "p_wilcoxon", "p_holm",
)  # fmt: skip


def number(value: Any) -> float | None:
    """Shorten a number to six digits; None if it is missing or undefined."""
    if value is None or pd.isna(value):
        return None
    return float(f"{float(value):.6g}")


def text_number(text: str, path: Path, field: str) -> float | None:
    """Read a number of a CSV; None for an empty one or nan.

    Raises
    ------
    StageError
        If it is no number.
    """
    try:
        value = float(text) if text else math.nan
    except ValueError:
        raise StageError(f"{path}: {field}: expected a number, found {text!r}") from None
    return None if math.isnan(value) else float(f"{value:.6g}")


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV as text.

    Raises
    ------
    StageError
        If it lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            found = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StageError(f"{path}: cannot be read ({error})") from None
    if missing := [name for name in columns if name not in found]:
        raise StageError(f"{path}: lacks the columns {', '.join(missing)}")
    return rows


def nested(values: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """Turn keys that are tuples into levels of dictionaries."""
    tree: dict[Any, Any] = {}
    for (*path, last), value in values.items():
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return tree


def values_of(
    long: pd.DataFrame, metrics: Sequence[str], categories: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """Lay out one data set's values as metric -> algorithm -> category -> seed.

    The last two are lists, in the order of ``categories`` and ``seeds``.
    """
    tree: dict[str, Any] = {}
    rows, columns = ({name: i for i, name in enumerate(one)} for one in (categories, seeds))
    for metric in metrics:
        shown = headline(long, metric)
        names = ("algorithm", "category", "seed", "value")
        for algorithm, category, seed, value in zip(*(shown[name] for name in names), strict=True):
            table = tree.setdefault(metric, {}).setdefault(
                algorithm, [[None] * len(seeds) for _ in categories]
            )
            table[rows[category]][columns[seed]] = number(value)
    return tree


def reasons_of(long: pd.DataFrame, metrics: Sequence[str]) -> list[dict[str, str]]:
    """Say why values are undefined, once for each metric, category and reason."""
    shown = long[long["metric"].isin(metrics) & long["primary"] & (long["defect_type"] == "all")]
    undefined = shown.dropna(subset="reason")[["metric", "category", "reason"]].drop_duplicates()
    return [dict(zip(undefined.columns, row, strict=True)) for row in undefined.to_numpy()]


def costs_of(
    costs: pd.DataFrame, sizes: Mapping[tuple[str, str, int], int], categories: Sequence[str]
) -> dict[str, Any]:
    """Lay out what runs cost as algorithm -> category: means over seeds, memory the largest.

    Parameters
    ----------
    costs
        The table ``costs.csv``.
    sizes
        Bytes of the model's files by category, algorithm and seed.
    categories
        In the order in which the lists go.
    """
    tree: dict[str, Any] = {}
    for key, runs in costs.groupby(["algorithm", "category"], sort=False):
        algorithm, category = map(str, key)
        models = [sizes.get((category, algorithm, seed)) for seed in runs["seed"]]
        known = [size for size in models if size is not None]
        cell = {
            "train_seconds": number(runs["train_seconds"].mean()),
            "inference_ms": number(runs["inference_seconds_per_image"].mean() * 1e3),
            "peak_mb": number(runs["peak_rss_bytes"].max() / 1e6),
            "gpu_mb": number(runs["gpu_peak_bytes"].max() / 1e6),
            "model_mb": number(sum(known) / len(known) / 1e6) if known else None,
        }
        tree.setdefault(algorithm, [None] * len(categories))[categories.index(category)] = cell
    return tree


def types_of(long: pd.DataFrame, category: str) -> pd.DataFrame:
    """Lay out one category's values by defect type, means over seeds.

    Rows are (metric, algorithm) and columns defect types, in the order of the tables.
    """
    rows = long[(long["category"] == category) & long["primary"]]
    groups = rows.groupby(["metric", "algorithm", "defect_type"], sort=False)["value"]
    table = groups.agg(lambda values: values.mean(skipna=False)).unstack("defect_type")
    kinds = [name for name in table.columns if name not in ("all", MEAN)]
    averaged = [MEAN] if MEAN in table.columns else []
    return table[["all", *averaged, *kinds]]


def published_of(published: pd.DataFrame, datasets: Iterable[str]) -> dict[str, Any]:
    """Lay out published values as data set -> metric -> algorithm -> category -> source."""
    return nested(
        {
            (dataset, *(row[key] for key in ("metric", "algorithm", "category", "source"))): number(
                row["value"]
            )
            for dataset in datasets
            for row in measured_on(published, dataset).to_dict("records")
        }
    )


def significance_of(folder: Path) -> dict[str, Any] | None:
    """Read what stage `compare` has made of one data set; None if it has not been made.

    Raises
    ------
    StageError
        If a table is not as docs/formats.md says.
    """
    if not (folder / "intervals.csv").is_file():
        return None

    def numbers(path: Path, columns: Sequence[str], keys: int) -> list[list[Any]]:
        return [
            [row[name] for name in columns[:keys]]
            + [text_number(row[name], path, name) for name in columns[keys:]]
            for row in read_rows(path, columns)
        ]

    tests = read_json(folder / "tests.json")
    intervals = numbers(folder / "intervals.csv", INTERVALS, 3)
    ranks = numbers(folder / "ranks.csv", ("algorithm", "metric", "mean_rank", "wins"), 2)
    return {
        "intervals": nested({(m, a, c): [low, high] for a, c, m, low, high in intervals}),
        "ranks": nested({(m, a): [rank, wins] for a, m, rank, wins in ranks}),
        "pairs": nested({(m, a, b): rest for m, a, b, *rest in numbers(
            folder / "pairs.csv", PAIRS, 3
        )}),
        "tests": tests,
    }  # fmt: skip


def dataset_of(
    long: pd.DataFrame,
    costs: pd.DataFrame,
    sizes: Mapping[tuple[str, str, int], int],
    parameters: Mapping[str, Any],
    categories: Sequence[str],
) -> dict[str, Any]:
    """Lay out one data set's leaderboard."""
    shown, metrics = with_means_of_types(long, parameters["metrics"])
    seeds = parameters["seeds"]
    return {
        "categories": list(categories),
        "metrics": metrics,
        "seeds": list(seeds),
        "values": values_of(shown, metrics, categories, seeds),
        "reasons": reasons_of(shown, metrics),
        "costs": costs_of(costs, sizes, categories),
    }
