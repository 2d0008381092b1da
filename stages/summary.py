"""Lay out the leaderboards of all data sets of a run in the form that DVC compares and plots.

`metrics.json` holds means over categories as data set -> algorithm -> metric; `means.csv` the same
as a table; `categories.csv` every category's value, the mean over seeds. Undefined is null.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from stages.aggregate import LONG, pivot, read_table, write_table
from stages.artifacts.files import write_json
from stages.artifacts.job import Job
from stages.command import Options, run


def category_values(
    long: pd.DataFrame, dataset: str, categories: list[str], metrics: list[str]
) -> pd.DataFrame:
    """Lay out each category's values: a row per category and algorithm, a column per metric."""
    columns = {
        metric: pivot(long, metric, categories).stack(future_stack=True) for metric in metrics
    }
    table = pd.DataFrame(columns).rename_axis(["category", "algorithm"]).reset_index()
    table.insert(0, "dataset", dataset)
    return table


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the summaries of the job's data sets."""
    metrics, algorithms = job.parameters["metrics"], job.parameters["algorithms"]
    tables = [
        category_values(read_table(path, LONG), dataset, categories, metrics)
        for path, (dataset, categories) in zip(
            job.inputs["long"], job.parameters["categories"].items(), strict=True
        )
    ]
    values = pd.concat(tables, ignore_index=True)
    groups = values.groupby(["dataset", "algorithm"], sort=False)[metrics]
    means = groups.agg(lambda column: column.mean(skipna=False))
    summary = {
        dataset: {
            algorithm: {
                metric: None if math.isnan(value) else float(value)
                for metric, value in means.loc[(dataset, algorithm)].items()
            }
            for algorithm in algorithms
        }
        for dataset in job.parameters["categories"]
    }
    write_json(job.outputs["metrics"], summary)
    means = means.reset_index()
    means.insert(0, "row", means["dataset"] + " " + means["algorithm"])
    write_table(job.outputs["means"], means)
    write_table(job.outputs["categories"], values)
    return {"datasets": len(tables), "algorithms": len(algorithms)}


if __name__ == "__main__":
    run("summary", __doc__, body)
