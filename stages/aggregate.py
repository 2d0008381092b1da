"""Join the metrics and costs of one data set into its tables and its leaderboard.

`long.csv` holds every value, `costs.csv` what every run cost, `tables/<metric>.csv` categories x
algorithms (`.tex` and `.md` beside it: for papers, :mod:`stages.tables`), and `leaderboard.md` all
of it to read. The leaderboard shows an algorithm's primary
method over all defect types; where the data set averages over types, that mean is a metric more,
`<metric>_mean_of_types`. A category's value is the mean over seeds; an algorithm's is the mean over
categories, and undefined (nan) as soon as one category is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages import tables
from stages.artifacts.files import StageError, atomic_path, read_json, write_text
from stages.artifacts.job import Job
from stages.artifacts.provenance import read_provenance
from stages.command import Options, run

MEAN = "mean_of_types"
DOCUMENT = "_tables.tex"  # of all tables; no metric is called so
RUN = ["category", "algorithm", "seed"]
LONG = [
    "dataset", *RUN, "metric", "method", "primary", "defect_type", "value", "reason",
    "good_images", "defective_images", "backbone", "image_size", "evaluation_size",
    "train_seconds", "inference_seconds_per_image", "peak_rss_bytes", "commit", "fingerprint",
]  # fmt: skip
# Seconds of the processor and peaks of memory are those of the training process.
COSTS = [
    "dataset", *RUN, "train_seconds", "train_seconds_per_image", "epochs", "stopped_by",
    "inference_seconds", "inference_seconds_per_image", "cpu_seconds", "peak_rss_bytes",
    "gpu_peak_bytes", "threads", "processor", "cores", "gpu", "system", "packages", "commit",
]  # fmt: skip
NUMBERS = {
    "seed": "int64", "primary": "bool", "value": "float64", "good_images": "int64",
    "defective_images": "int64", "image_size": "int64", "evaluation_size": "int64",
    "train_seconds": "float64", "train_seconds_per_image": "float64", "epochs": "Int64",
    "inference_seconds": "float64", "inference_seconds_per_image": "float64",
    "cpu_seconds": "float64", "peak_rss_bytes": "Int64", "gpu_peak_bytes": "Int64",
    "threads": "Int64", "cores": "Int64",
}  # fmt: skip


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read `long.csv` (``LONG``) or `costs.csv` (``COSTS``).

    What is no number stays text: a category may be called 01 or NA.

    Raises
    ------
    StageError
        If the file is missing or has other columns.
    """
    types: dict[Any, Any] = {name: NUMBERS.get(name, "str") for name in columns}
    try:
        return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])[list(columns)]
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run snakemake to make it") from None
    except (ValueError, KeyError) as error:
        raise StageError(
            f"{path}: not a table of this version ({error}); delete it and run snakemake again"
        ) from None


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV: whole, or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def _run(key: Mapping[str, Any]) -> tuple[str, str, int]:
    """Name a run as the columns ``RUN`` do; a key's seed is written `seed0`."""
    return key["category"], key["algorithm"], int(str(key["seed"]).removeprefix("seed"))


def _require(found: set[Any], what: str, parameters: Mapping[str, Any], *names: str) -> None:
    """Raise a StageError if a combination of the parameters ``names`` was not found."""
    expected = itertools.product(*(parameters[name] for name in names))
    if missing := [one for one in expected if one not in found]:
        raise StageError(
            f"data set {parameters['dataset']}: {len(missing)} {what} missing, e.g. of "
            f"{', '.join(map(str, missing[0]))}; run snakemake again"
        )


def _sorted(table: pd.DataFrame, parameters: Mapping[str, Any]) -> pd.DataFrame:
    """Sort rows as the parameters name things; rows that are equal in that keep their order."""
    plural = {"category": "categories", "algorithm": "algorithms", "metric": "metrics"}
    by = [column for column in [*RUN, "metric"] if column in table]
    places = {
        column: {name: place for place, name in enumerate(parameters[plural[column]])}
        for column in by
        if column in plural
    }
    return table.sort_values(
        by, key=lambda values: values.map(places.get(str(values.name), lambda seed: seed))
    ).reset_index(drop=True)


def cost_table(
    train: Iterable[Mapping[str, Any]],
    predict: Iterable[Mapping[str, Any]],
    parameters: Mapping[str, Any],
) -> pd.DataFrame:
    """Join training and prediction stamps: one row per run, the columns of ``COSTS``.

    Raises
    ------
    StageError
        If a run was not trained or has predicted nothing.
    """
    trained = {_run(stamp["key"]): stamp for stamp in train}
    predicted = {_run(stamp["key"]): stamp["measured"] for stamp in predict}
    runs = trained.keys() & predicted.keys()
    _require(runs, "stamps", parameters, "categories", "algorithms", "seeds")
    rows = []
    for key in runs:
        stamp = trained[key]
        versions = {"python": stamp["machine"].get("python"), **stamp["packages"]}
        row = {
            **predicted[key],
            **stamp["measured"],
            **stamp["machine"],
            **dict(zip(RUN, key, strict=True)),
            "dataset": parameters["dataset"],
            "threads": stamp["threads"],
            "commit": stamp["commit"],
            "packages": ", ".join(
                f"{name} {version}" for name, version in versions.items() if version
            ),
        }
        rows.append({name: row.get(name) for name in COSTS})
    table = pd.DataFrame(rows, columns=COSTS)
    return _sorted(table.astype({name: NUMBERS.get(name, "str") for name in COSTS}), parameters)


def long_table(
    metrics: Iterable[Mapping[str, Any]], costs: pd.DataFrame, parameters: Mapping[str, Any]
) -> pd.DataFrame:
    """Lay out every value of every metric file as one row, the columns of ``LONG``.

    Raises
    ------
    StageError
        If a metric of a run is not among those given.
    """
    rows = [
        {**record, **dict(zip(RUN, _run(record), strict=True)), **value}
        for record in metrics
        for value in record["values"]
    ]
    found = {(*_run(row), row["metric"]) for row in rows}
    _require(found, "values", parameters, "categories", "algorithms", "seeds", "metrics")
    table = pd.DataFrame(rows)
    for name in ("backbone", "image_size"):
        table[name] = table["algorithm"].map(
            {algorithm: values[name] for algorithm, values in parameters["settings"].items()}
        )
    measured = ["train_seconds", "inference_seconds_per_image", "peak_rss_bytes", "commit"]
    table = table.merge(costs[[*RUN, *measured]], on=RUN)[LONG]
    return _sorted(table.astype({name: NUMBERS.get(name, "str") for name in LONG}), parameters)


def headline(long: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Select what a leaderboard shows: the primary method over all defect types."""
    return long[(long["metric"] == metric) & long["primary"] & (long["defect_type"] == "all")]


def with_means_of_types(
    long: pd.DataFrame, metrics: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Make the means over defect types metrics of their own, each after the one that it is of."""
    means = long[long["defect_type"] == MEAN]
    if means.empty:
        return long, list(metrics)
    own = means.assign(metric=means["metric"] + f"_{MEAN}", defect_type="all")
    names = [[metric, f"{metric}_{MEAN}"] for metric in metrics]
    shown = {*metrics, *own["metric"]}
    return pd.concat([long, own]), [name for pair in names for name in pair if name in shown]


def _mean(values: pd.Series) -> float:
    return float(values.mean(skipna=False))


def pivot(long: pd.DataFrame, metric: str, categories: Sequence[str]) -> pd.DataFrame:
    """Lay a metric out as categories x algorithms, mean over seeds, best algorithm first.

    Algorithms are sorted by their mean over categories, undefined means last, ties by name.
    """
    groups = headline(long, metric).groupby(["category", "algorithm"])["value"]
    table = groups.agg(_mean).unstack("algorithm").reindex(list(categories))
    # Rounded, since equal means differ in their last bits by the order of summation.
    means = table.mean(skipna=False).round(12).sort_index()
    return table[means.sort_values(ascending=False, kind="stable", na_position="last").index]


def with_mean(table: pd.DataFrame) -> pd.DataFrame:
    """Add the row `mean`: over all categories, nan if one is."""
    return pd.concat([table, table.mean(skipna=False).to_frame("mean").T]).rename_axis("category")


def summary(
    long: pd.DataFrame, costs: pd.DataFrame, metrics: Sequence[str], categories: Sequence[str]
) -> pd.DataFrame:
    """Sum up each algorithm in one row, sorted by the first metric.

    Columns: for each metric its mean, `<metric> std` over categories (n - 1) and `<metric> seeds`,
    the standard deviation over seeds of the category mean (nan with one seed); then
    `train_seconds` and `inference_ms` (means over runs) and `peak_mb` (the largest).
    """
    pivots = {metric: pivot(long, metric, categories) for metric in metrics}
    columns: dict[str, pd.Series] = {}
    for metric, table in pivots.items():
        columns[metric] = table.mean(skipna=False)
        columns[f"{metric} std"] = table.std(ddof=1, skipna=False)
        seeds = headline(long, metric).groupby(["algorithm", "seed"])["value"].agg(_mean)
        columns[f"{metric} seeds"] = seeds.groupby("algorithm").std(ddof=1)
    runs = costs.groupby("algorithm")
    columns["train_seconds"] = runs["train_seconds"].mean()
    columns["inference_ms"] = runs["inference_seconds_per_image"].mean() * 1e3
    columns["peak_mb"] = runs["peak_rss_bytes"].max() / 1e6
    return pd.DataFrame(columns).loc[pivots[metrics[0]].columns].rename_axis("algorithm")


def summary_text(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Write a :func:`summary` for people: `0.981 ± 0.020`, and the spread over seeds if known."""

    def cell(row: pd.Series, metric: str) -> str:
        text = f"{row[metric]:.3f}"
        if pd.notna(row[f"{metric} std"]):
            text += f" ± {row[f'{metric} std']:.3f}"
        if pd.notna(row[f"{metric} seeds"]):
            text += f" (seeds ± {row[f'{metric} seeds']:.3f})"
        return text

    text = {metric: [cell(row, metric) for _, row in table.iterrows()] for metric in metrics}
    text["train s"] = [f"{value:.1f}" for value in table["train_seconds"]]
    text["inference ms/image"] = [f"{value:.1f}" for value in table["inference_ms"]]
    text["peak memory MB"] = [
        "unknown" if pd.isna(value) else f"{value:.0f}" for value in table["peak_mb"]
    ]
    return pd.DataFrame(text, index=table.index)


def markdown(table: pd.DataFrame, left: int = 1) -> str:
    """Write a table of text as Markdown: the index first, ``left`` columns aligned left."""
    alignment = ["left"] * left + ["right"] * (table.shape[1] + 1 - left)
    # Without this a cell such as 0.990 would be read as a number and lose its last digit.
    return str(table.to_markdown(disable_numparse=True, colalign=alignment))


def reasons_of(long: pd.DataFrame, metric: str) -> dict[tuple[str, str], str]:
    """Say why values of a metric are undefined, by category and algorithm."""
    shown = headline(long, metric).dropna(subset="reason")
    keys = zip(shown["category"], shown["algorithm"], strict=True)
    return dict(zip(keys, shown["reason"], strict=True))


def metric_text(table: pd.DataFrame, long: pd.DataFrame, metric: str) -> str:
    """Write a :func:`pivot` as Markdown: the largest of each row bold, reasons below it."""
    reasons = reasons_of(long, metric)
    notes = {reason: number for number, reason in enumerate(dict.fromkeys(reasons.values()), 1)}
    rows = []
    for category, row in table.iterrows():
        cells = []
        for algorithm, value in row.items():
            text = f"{value:.3f}"
            if pd.isna(value):
                text += f" ({notes[reasons[str(category), str(algorithm)]]})"
            elif text == f"{row.max():.3f}":  # what looks equal is equal
                text = f"**{text}**"
            cells.append(text)
        rows.append(cells)
    rows.append([f"**{value:.3f}**" for value in table.mean(skipna=False)])
    index = pd.Index([*table.index, "**mean**"], name="category")
    lines = [markdown(pd.DataFrame(rows, index=index, columns=table.columns))]
    lines += ["", *(f"({number}) {reason}  " for reason, number in notes.items())]
    return "\n".join(lines).rstrip()


def write_paper_table(
    folder: Path,
    table: pd.DataFrame,
    metric: str,
    reasons: Mapping[tuple[str, str], str],
    parameters: Mapping[str, Any],
) -> None:
    """Write a :func:`pivot` as LaTeX and as Markdown."""
    dataset, seeds = parameters["dataset"], len(parameters["seeds"])
    caption = tables.caption_of(parameters["title"], metric, dataset, seeds)
    laid = tables.lay_out(table, reasons)
    texts = {
        "tex": tables.latex(laid, caption, f"tab:{dataset}-{metric}"),
        "md": tables.markdown(laid, caption),
    }
    for suffix, text in texts.items():
        (folder / f"{metric}.{suffix}").write_text(text, encoding="utf-8")


def grouped(values: Mapping[str, Any], unit: str = "") -> str:
    """Say what has which value, the commonest first: `256 px, but 320 px (padim, random)`."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault("none" if value is None else f"{value}{unit}", []).append(name)
    common, *others = sorted(names, key=lambda text: -len(names[text]))
    exceptions = ", ".join(f"{text} ({', '.join(names[text])})" for text in others)
    return f"{common}, but {exceptions}" if others else common


def short_commit(commit: str) -> str:
    """Shorten a commit to 12 digits, keeping what marks changed files."""
    digits, mark, rest = commit.partition("+")
    return digits[:12] + mark + rest


def commits(costs: pd.DataFrame) -> str:
    """Say which commit made which algorithm's numbers, the commonest first."""
    own = costs.groupby("algorithm", sort=False)["commit"]
    return grouped({str(name): unique(found, short_commit) for name, found in own})


def unique(values: pd.Series, text: Callable[[Any], str] = str, missing: str = "unknown") -> str:
    """Write a column's different values, in order, or ``missing`` if it has none."""
    return ", ".join(dict.fromkeys(text(value) for value in values.dropna())) or missing


def render(long: pd.DataFrame, costs: pd.DataFrame, parameters: Mapping[str, Any]) -> str:
    """Write the leaderboard as Markdown."""
    categories = parameters["categories"]
    long, metrics = with_means_of_types(long, parameters["metrics"])
    settings = {name: parameters["settings"][name] for name in parameters["algorithms"]}
    spread = {
        (False, False): "One category, one seed.",
        (True, False): "Mean ± standard deviation over categories.",
        (False, True): "One category: mean over seeds (± standard deviation over seeds).",
        (True, True): "Mean ± standard deviation over categories of the mean over seeds; in "
        "parentheses the standard deviation over seeds of the mean over categories.",
    }[len(categories) > 1, len(parameters["seeds"]) > 1]
    lines = [
        f"# {parameters['title']} ({parameters['dataset']})",
        "",
        markdown(summary_text(summary(long, costs, metrics, categories), metrics)),
        "",
        f"{spread} Sorted by {metrics[0]}. Seconds and milliseconds are means over runs, memory is "
        "the largest peak in training.",
        "",
        f"Seeds {', '.join(map(str, parameters['seeds']))}; "
        f"backbone {grouped({name: one['backbone'] for name, one in settings.items()})}; "
        f"images {grouped({name: one['image_size'] for name, one in settings.items()}, ' px')}, "
        f"maps and masks {parameters['evaluation_size']} px; "
        f"commit {commits(costs)}; "
        f"{unique(costs['processor'])}, {unique(costs['threads'])} threads, "
        f"GPU {unique(costs['gpu'], missing='none')}.",
    ]
    if len(metrics) > len(parameters["metrics"]):
        lines += [
            "",
            f"`{MEAN}`: the mean over defect types, each against all good images; without it, all "
            "defects are pooled. Papers report one or the other.",
        ]
    for metric in metrics:
        text = metric_text(pivot(long, metric, categories), long, metric)
        lines += ["", f"## {metric}", "", text]
    return "\n".join([*lines, ""])


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the tables and the leaderboard of the job's data set."""
    parameters = job.parameters
    costs = cost_table(
        map(read_provenance, job.inputs["train_provenance"]),
        map(read_provenance, job.inputs["predict_provenance"]),
        parameters,
    )
    long = long_table(map(read_json, job.inputs["metrics"]), costs, parameters)
    write_table(job.outputs["long"], long)
    write_table(job.outputs["costs"], costs)
    with atomic_path(job.outputs["tables"]) as folder:
        folder.mkdir()
        shown, metrics = with_means_of_types(long, parameters["metrics"])
        for metric in metrics:
            table = pivot(shown, metric, parameters["categories"])
            with_mean(table).to_csv(folder / f"{metric}.csv", lineterminator="\n")
            write_paper_table(folder, table, metric, reasons_of(shown, metric), parameters)
        document = tables.latex_document(metrics)
        (folder / DOCUMENT).write_text(document, encoding="utf-8")
    write_text(job.outputs["leaderboard"], render(long, costs, parameters))
    return {"rows": len(long)}


if __name__ == "__main__":
    run("aggregate", __doc__, body)
