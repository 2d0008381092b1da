"""The tables: what they hold, how they are sorted, and what they say where a value is missing."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages import aggregate
from stages.artifacts.files import StageError
from stages.artifacts.job import Job
from stages.command import Options

# (algorithm, category): the primary method's value for each of two seeds. Category 01 is text.
VALUES: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("zeta", "01"): (0.9, 0.8),
    ("zeta", "NA"): (0.7, 0.8),
    ("alpha", "01"): (0.6, 0.7),
    ("alpha", "NA"): (1.0, 0.9),
    ("best", "01"): (0.99, 0.97),
    ("best", "NA"): (0.96, 0.96),
}
REASON = "no defective image"


def parameters(seeds: tuple[int, ...] = (0, 1), **changes: Any) -> dict[str, Any]:
    algorithms = ["zeta", "alpha", "best"]
    return {
        "dataset": "toy",
        "title": "A title",
        "categories": ["NA", "01"],
        "algorithms": algorithms,
        "seeds": list(seeds),
        "metrics": ["image_auroc"],
        "settings": {
            name: {
                "backbone": None if name == "alpha" else "resnet18",
                "image_size": 64,
                "epochs": 1,
                "train_seconds": None,
            }
            for name in algorithms
        },
        "evaluation_size": 32,
        **changes,
    }


def metric_files(values: Any = VALUES, seeds: tuple[int, ...] = (0, 1)) -> list[dict[str, Any]]:
    files = []
    for (algorithm, category), by_seed in values.items():
        for seed in seeds:
            value = by_seed[seed]
            common = {"good_images": 3, "defective_images": 2}
            records = [
                ("main", True, "all", value, REASON if value is None else None),
                ("main", True, "crack", 0.123, None),
                ("other", False, "all", 0.456, None),
            ]
            names = ("method", "primary", "defect_type", "value", "reason")
            files.append(
                {
                    "algorithm": algorithm,
                    "dataset": "toy",
                    "category": category,
                    "seed": f"seed{seed}",
                    "metric": "image_auroc",
                    "parameters": {},
                    "evaluation_size": 32,
                    "fingerprint": f"{algorithm}/{category}/{seed}",
                    "values": [
                        {**dict(zip(names, record, strict=True)), **common} for record in records
                    ],
                }
            )
    return files


def stamps(stage: str, seeds: tuple[int, ...] = (0, 1)) -> list[dict[str, Any]]:
    """Provenance of all runs; training took longer and took more memory with each seed."""

    def measured(seed: int) -> dict[str, Any]:
        if stage == "predict":
            return {
                "inference_seconds": 2.0,
                "inference_seconds_per_image": 0.004,
                "cpu_seconds": 1.0,
                "peak_rss_bytes": 1,
            }
        return {
            "train_seconds": 10.0 + seed,
            "train_seconds_per_image": 0.5,
            "epochs": 4,
            "stopped_by": "budget",
            "cpu_seconds": 7.0,
            "peak_rss_bytes": (300 + seed) * 10**6,
            "gpu_peak_bytes": None,
        }

    return [
        {
            "key": {
                "algorithm": algorithm,
                "dataset": "toy",
                "category": category,
                "seed": f"seed{seed}",
            },
            "measured": measured(seed),
            "machine": {
                "processor": "A processor",
                "cores": 2,
                "system": "Linux",
                "python": "3.11.7",
                "gpu": None,
            },
            "packages": {"torch": "2.9.0", "timm": None},
            "commit": "0123456789abcdef+changes",
            "threads": 1,
        }
        for algorithm, category in VALUES
        for seed in seeds
    ]


def tables(
    values: Any = VALUES, seeds: tuple[int, ...] = (0, 1), **changes: Any
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    settings = parameters(seeds, **changes)
    costs = aggregate.cost_table(stamps("train", seeds), stamps("predict", seeds), settings)
    return aggregate.long_table(metric_files(values, seeds), costs, settings), costs, settings


def test_long_table_has_one_row_per_value_in_the_order_of_the_parameters() -> None:
    long, _, _ = tables()
    assert list(long.columns) == aggregate.LONG
    assert len(long) == 6 * 2 * 3
    order = [tuple(row) for row in long[["category", "algorithm", "seed"]].drop_duplicates().values]
    assert order[:4] == [
        ("NA", "zeta", 0),
        ("NA", "zeta", 1),
        ("NA", "alpha", 0),
        ("NA", "alpha", 1),
    ]
    assert order[6] == ("01", "zeta", 0)
    row = long[(long["algorithm"] == "zeta") & (long["category"] == "01") & (long["seed"] == 1)]
    assert list(row["method"]) == ["main", "main", "other"]
    assert list(row["value"]) == [0.8, 0.123, 0.456]
    assert list(row["train_seconds"]) == [11.0] * 3
    assert list(row["peak_rss_bytes"]) == [301 * 10**6] * 3  # of training, not of prediction
    assert set(row["fingerprint"]) == {"zeta/01/1"}


def test_order_of_the_files_does_not_matter() -> None:
    settings = parameters()
    costs = aggregate.cost_table(stamps("train")[::-1], stamps("predict"), settings)
    backwards = aggregate.long_table(metric_files()[::-1], costs, settings)
    long, other_costs, _ = tables()
    pd.testing.assert_frame_equal(backwards, long)
    pd.testing.assert_frame_equal(costs, other_costs)


def test_costs_join_training_and_prediction() -> None:
    _, costs, _ = tables()
    assert list(costs.columns) == aggregate.COSTS
    row = costs.iloc[1]
    assert (row["category"], row["algorithm"], row["seed"]) == ("NA", "zeta", 1)
    assert (row["train_seconds"], row["inference_seconds_per_image"]) == (11.0, 0.004)
    assert (row["cpu_seconds"], row["epochs"], row["stopped_by"]) == (7.0, 4, "budget")
    assert row["packages"] == "python 3.11.7, torch 2.9.0"
    assert pd.isna(row["gpu_peak_bytes"]) and pd.isna(row["gpu"])


@pytest.mark.parametrize("columns", [aggregate.LONG, aggregate.COSTS])
def test_tables_survive_the_file(tmp_path: Path, columns: list[str]) -> None:
    long, costs, _ = tables({**VALUES, ("zeta", "01"): (None, 1 / 3)})
    table = long if columns is aggregate.LONG else costs
    aggregate.write_table(tmp_path / "table.csv", table)
    back = aggregate.read_table(tmp_path / "table.csv", columns)
    pd.testing.assert_frame_equal(back, table)
    assert set(back["category"]) == {"NA", "01"}


def test_read_table_names_a_file_that_is_missing_or_foreign(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name in ("missing.csv", "other.csv"):
        with pytest.raises(StageError, match=name):
            aggregate.read_table(tmp_path / name, aggregate.LONG)


def test_missing_results_are_named() -> None:
    settings = parameters()
    costs = aggregate.cost_table(stamps("train"), stamps("predict"), settings)
    with pytest.raises(StageError, match=r"1 values missing, e\.g\. of NA, best, 1, image_auroc"):
        aggregate.long_table(metric_files()[:-1], costs, settings)
    with pytest.raises(StageError, match=r"2 stamps missing, e\.g\. of 01, zeta, 0"):
        aggregate.cost_table(stamps("train"), stamps("predict")[2:], settings)


def test_pivot_sorts_by_the_mean_and_averages_seeds() -> None:
    long, _, settings = tables()
    table = aggregate.pivot(long, "image_auroc", settings["categories"])
    # alpha and zeta tie at 0.8: by name.
    assert list(table.columns) == ["best", "alpha", "zeta"]
    assert list(table.index) == ["NA", "01"]
    assert table["zeta"].tolist() == pytest.approx([0.75, 0.85])
    complete = aggregate.with_mean(table)
    assert list(complete.index) == ["NA", "01", "mean"]
    assert complete.iloc[-1].tolist() == pytest.approx([0.97, 0.8, 0.8])


def test_an_undefined_category_makes_the_mean_undefined_and_last() -> None:
    long, costs, settings = tables({**VALUES, ("best", "01"): (0.99, None)})
    table = aggregate.pivot(long, "image_auroc", settings["categories"])
    assert list(table.columns) == ["alpha", "zeta", "best"]
    assert math.isnan(aggregate.with_mean(table)["best"].iloc[-1])
    text = aggregate.render(long, costs, settings)
    assert "nan (1)" in text
    assert f"(1) {REASON}" in text
    assert "**nan**" in text


def test_summary_has_the_spread_over_categories_and_over_seeds() -> None:
    long, costs, settings = tables()
    table = aggregate.summary(long, costs, ["image_auroc"], settings["categories"])
    row = table.loc["best"]
    assert row["image_auroc"] == pytest.approx(0.97)
    assert row["image_auroc std"] == pytest.approx(0.02 / math.sqrt(2))  # of 0.96 and 0.98
    assert row["image_auroc seeds"] == pytest.approx(0.01 / math.sqrt(2))  # of 0.975 and 0.965
    assert row["train_seconds"] == 10.5
    assert row["inference_ms"] == pytest.approx(4.0)
    assert row["peak_mb"] == 301
    text = aggregate.summary_text(table, ["image_auroc"])
    assert text["image_auroc"]["best"] == "0.970 ± 0.014 (seeds ± 0.007)"


def test_one_seed_and_one_category_have_no_spread() -> None:
    values = {key: pair for key, pair in VALUES.items() if key[1] == "01"}
    long, costs, settings = tables(values, (0,), categories=["01"])
    summary = aggregate.summary(long, costs, ["image_auroc"], ["01"])
    text = aggregate.summary_text(summary, ["image_auroc"])
    assert list(text["image_auroc"]) == ["0.990", "0.900", "0.600"]
    assert "One category, one seed." in aggregate.render(long, costs, settings)


def test_markdown_bolds_what_looks_best_and_the_mean_row() -> None:
    values = {**VALUES, ("best", "NA"): (0.9499, 0.9499), ("zeta", "NA"): (0.9501, 0.9501)}
    long, _, settings = tables(values)
    table = aggregate.pivot(long, "image_auroc", settings["categories"])
    lines = aggregate.metric_text(table, long, "image_auroc").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["category", "best", "zeta", "alpha"]
    assert cells[2] == ["NA", "**0.950**", "**0.950**", "**0.950**"]
    assert cells[3] == ["01", "**0.980**", "0.850", "0.650"]
    assert cells[4] == ["**mean**", "**0.965**", "**0.900**", "**0.800**"]


def test_markdown_keeps_every_digit() -> None:
    table = pd.DataFrame({"n": ["0.990", "1.000"]}, index=pd.Index(["01", "b"], name="c"))
    lines = aggregate.markdown(table).splitlines()
    assert [line.replace(" ", "") for line in lines[2:]] == ["|01|0.990|", "|b|1.000|"]


def test_grouped_names_only_the_exceptions() -> None:
    assert aggregate.grouped({"a": 64, "b": 64}, " px") == "64 px"
    assert aggregate.grouped({"a": None, "b": "r", "c": "r"}) == "r, but none (a)"


def test_body_writes_every_output(tmp_path: Path) -> None:
    def save(name: str, contents: list[dict[str, Any]]) -> list[Path]:
        paths = [tmp_path / f"{name}{number}.json" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(json.dumps(content))
        return paths

    place = tmp_path / "results"
    outputs = {
        "long": place / "long.csv",
        "costs": place / "costs.csv",
        "leaderboard": place / "leaderboard.md",
        "tables": place / "tables",
    }
    inputs = {
        "metrics": save("metric", metric_files()),
        "train_provenance": save("train", stamps("train")),
        "predict_provenance": save("predict", stamps("predict")),
    }
    job = Job(
        "aggregate", {"dataset": "toy"}, parameters(), inputs, outputs, "", {}, "", "cpu"
    )  # fmt: skip
    aggregate.body(job, Options(1, "cpu", False))
    first = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    aggregate.body(job, Options(1, "cpu", False))
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == first
    assert {path.relative_to(place).as_posix() for path in first} == {
        "long.csv",
        "costs.csv",
        "leaderboard.md",
        "tables/image_auroc.csv",
        "tables/image_auroc.md",
        "tables/image_auroc.tex",
        "tables/_tables.tex",
    }
    lines = (place / "tables/image_auroc.csv").read_text().splitlines()
    assert lines[0] == "category,best,alpha,zeta"
    text = outputs["leaderboard"].read_text()
    assert text.startswith("# A title (toy)\n")
    assert "commit 0123456789ab+changes; A processor, 1 threads, GPU none." in text
    assert "backbone resnet18, but none (alpha)" in text
