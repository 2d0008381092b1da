"""Say how sure one data set's leaderboard is: intervals, ranks, pairs and tests.

`intervals.csv` holds bootstrap intervals of each cell and of the mean over categories, `ranks.csv`
mean ranks, `pairs.csv` differences of two algorithms with their interval and p-values, and
`tests.json` what is said of all algorithms at once. Images are drawn anew within each category and
training seeds within each resample; categories are not drawn: an interval of a mean is about
these categories. Tests over categories know means over seeds only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from stages.aggregate import LONG, pivot, read_table, write_table
from stages.artifacts.files import atomic_path, write_json
from stages.artifacts.job import Job
from stages.command import Options, run
from stages.compare_figure import describe, draw
from stages.drawing import STYLE, save
from stages.intervals import (
    INTERVALS,
    Cell,
    cells,
    difference,
    ends,
    interval_rows,
    mean_of,
    read_runs,
)
from visionad_metrics import ranks

PAIRS = [
    "metric", "first", "second", "difference", "low", "high", "p_nemenyi", "p_wilcoxon", "p_holm",
    "reason",
]  # fmt: skip


def pair_rows(
    metric: str,
    table: pd.DataFrame,
    found: Mapping[str, Mapping[str, Cell]],
    confidence: float,
) -> list[dict[str, Any]]:
    """Lay out all pairs of one metric as rows of ``PAIRS``; the better mean is the first.

    Parameters
    ----------
    metric, confidence
        What is compared, and of which intervals.
    table
        Values, categories x algorithms, best mean first.
    found
        What :func:`cells` returned.
    """
    means = {name: mean_of(found[name]) for name in table.columns}
    ranked = list(table.columns[table.notna().all()])
    tested = {name: place for place, name in enumerate(ranked)}
    values = table[ranked].to_numpy()
    nemenyi, wilcoxon = ranks.nemenyi(values), ranks.wilcoxon(values)
    pairs = list(itertools.combinations(table.columns, 2))
    rows: list[dict[str, Any]] = []
    for first, second in pairs:
        one, other = means[first], means[second]
        reasons = [
            f"{name}: {means[name].reason}" for name in (first, second) if means[name].reason
        ]
        apart = difference(one, other)
        low, high, doubt = ends(apart, confidence)
        reasons += [doubt] if doubt else []
        p = signed = np.nan
        if first in tested and second in tested:
            p = nemenyi[tested[first], tested[second]]
            signed = wilcoxon[tested[first], tested[second]]
            if len(table) < 2:
                reasons.append("one category: no test over categories")
            elif np.isnan(signed):
                reasons.append("equal in every category: no signed-rank test")
        rows.append(
            {
                "metric": metric,
                "first": first,
                "second": second,
                "difference": round(apart.value, ranks.DIGITS),
                "low": low,
                "high": high,
                "p_nemenyi": p,
                "p_wilcoxon": signed,
                "reason": "; ".join(reasons) or None,
            }
        )
    p_values = np.array([row["p_wilcoxon"] for row in rows], np.float64)
    for row, corrected in zip(rows, ranks.holm(p_values), strict=True):
        row["p_holm"] = float(corrected)
    return rows


def rank_rows(metric: str, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rank the algorithms that are defined in every category, best mean rank first; others nan."""
    ranked = table.loc[:, table.notna().all()]
    mean = pd.Series(ranks.ranks(ranked).mean(axis=0), index=ranked.columns)
    won = pd.Series(ranks.wins(ranked), index=ranked.columns)
    order = list(mean.round(ranks.DIGITS).sort_values(kind="stable").index)
    order += [name for name in table.columns if name not in mean]
    return [
        {
            "algorithm": name,
            "metric": metric,
            "mean_rank": round(float(mean.get(name, np.nan)), ranks.DIGITS),
            "wins": int(won[name]) if name in won else None,
        }
        for name in order
    ]


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else number


def holding_best(table: pd.DataFrame) -> list[str]:
    """Name the algorithms, the best left out, whose mean + deviation holds the best mean.

    That is the paper's measure: the deviation is that of categories (n - 1), and no test.
    """
    means, stds = table.mean(skipna=False), table.std(ddof=1, skipna=False)
    held = means + stds >= means.max()
    return [name for name in table.columns[1:] if held[name]]


def omnibus(
    table: pd.DataFrame, mean_ranks: Mapping[str, float], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Test all algorithms of a table, categories x algorithms, at once; null is undefined.

    Where the Friedman test does not reject, or is undefined, no algorithm is told from another,
    whatever the ranks of two are.
    """
    categories, alpha = len(table), parameters["alpha"]
    ranked = [name for name, rank in mean_ranks.items() if not math.isnan(rank)]
    friedman = ranks.friedman(table[ranked])
    difference = ranks.critical_difference(len(ranked), categories, alpha)
    if friedman.p <= alpha:
        places = ranks.groups([mean_ranks[name] for name in ranked], difference)
        found, why = [[ranked[place] for place in group] for group in places], "Nemenyi's test"
    else:
        why = friedman.reason or f"the Friedman test does not reject: p = {friedman.p:.3g}"
        found = [ranked] if len(ranked) > 1 else []
    left_out = [name for name in mean_ranks if name not in ranked]
    one = "one category: no standard deviation over categories"
    return {
        "friedman": {
            "statistic": _or_none(friedman.statistic),
            "p": _or_none(friedman.p),
            "categories": categories,
            "reason": friedman.reason,
        },
        "critical_difference": _or_none(difference),
        "alpha": alpha,
        "confidence": parameters["confidence"],
        "resamples": parameters["resamples"],
        "seeds": len(parameters["seeds"]),
        "smallest_p_wilcoxon": _or_none(ranks.smallest_wilcoxon(categories)),
        "groups": found,
        "groups_by": why,
        "left_out": dict.fromkeys(left_out, "undefined in a category"),
        "paper_measure": holding_best(table),
        "paper_measure_reason": one if categories < 2 else None,
    }


def table_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Make a table of rows with these columns; counts that may be missing stay whole."""
    table = pd.DataFrame(list(rows), columns=list(columns))
    return table.astype({"wins": "Int64"}) if "wins" in columns else table


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the comparison of the job's data set."""
    parameters = job.parameters
    long, runs = read_table(job.input("long"), LONG), read_runs(job.inputs["resampled"])
    intervals, pairs, ranked, tests = [], [], [], {}
    for metric in parameters["metrics"]:
        table = pivot(long, metric, parameters["categories"])
        found = cells(metric, long, runs, parameters)
        intervals += interval_rows(metric, found, parameters["confidence"])
        pairs += pair_rows(metric, table, found, parameters["confidence"])
        rows = rank_rows(metric, table)
        ranked += rows
        mean_ranks = {row["algorithm"]: row["mean_rank"] for row in rows}
        tests[metric] = omnibus(table, mean_ranks, parameters)
    with (
        atomic_path(job.outputs["significance"]) as folder,
        mpl.rc_context(STYLE),
    ):
        folder.mkdir()
        write_table(folder / "intervals.csv", table_of(intervals, INTERVALS))
        write_table(
            folder / "ranks.csv", table_of(ranked, ["algorithm", "metric", "mean_rank", "wins"])
        )
        write_table(folder / "pairs.csv", table_of(pairs, PAIRS))
        write_json(folder / "tests.json", tests)
        for metric, test in tests.items():
            mean_ranks = {
                row["algorithm"]: row["mean_rank"] for row in ranked if row["metric"] == metric
            }
            title = f"{parameters['title']} ({job.key['dataset']}): {metric}"
            figure = draw(title, mean_ranks, test)
            name = f"critical_difference_{metric}"
            save(figure, folder, name, ("svg", "pdf"), 150, describe(metric, mean_ranks, test))
    return {"rows": len(intervals), "pairs": len(pairs)}


if __name__ == "__main__":
    run("compare", __doc__, body)
