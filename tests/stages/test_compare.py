"""Intervals, ranks, pairs and tests of a leaderboard: by hand, from replicates made here."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stages import compare, compare_figure
from stages.aggregate import LONG, NUMBERS, write_table
from stages.artifacts.files import StageError, read_json
from stages.artifacts.job import Job
from stages.artifacts.resampled import Replicates, ResampledRun, write_resampled
from stages.command import Options
from stages.drawing import STYLE
from stages.intervals import ALIKE

ALGORITHMS, CATEGORIES, RESAMPLES = ("weak", "twin", "good"), ("a", "b", "c", "d"), 400
REASON, NONE = "no defective image", "no bootstrap is known for siou"
PARAMETERS = {
    "title": "Toy", "algorithms": list(ALGORITHMS), "categories": list(CATEGORIES),
    "metrics": ["pl", "siou"], "seeds": [0, 1], "resamples": RESAMPLES, "confidence": 0.9,
    "alpha": 0.05, "seed": 0,
}  # fmt: skip


def value_of(algorithm: str, category: str, seed: int, metric: str) -> float:
    """`good` is better by 0.1, in every category; `twin` is `weak` but in d; d is undefined."""
    base = 0.5 + 0.05 * CATEGORIES.index(category) + 0.01 * seed
    return base + {"weak": 0, "twin": 0.02 * (category == "d"), "good": 0.1}[algorithm]


def make(folder: Path, values: Any = value_of, **changes: Any) -> Job:
    """Write the files of a data set and return the job that compares them.

    Replicates are the value with noise that all algorithms share; `siou` has none.
    """
    parameters = PARAMETERS | changes
    rows, paths = [], []
    for algorithm, category, seed in itertools.product(
        parameters["algorithms"], parameters["categories"], parameters["seeds"]
    ):
        rng = np.random.default_rng(CATEGORIES.index(category))
        shares = (np.arange(RESAMPLES) + 0.5) / RESAMPLES
        noise = 0.1 * rng.permutation(stats.norm.ppf(shares))
        metrics = {}
        for metric in parameters["metrics"]:
            value = values(algorithm, category, seed, metric)
            replicates, reason = value + noise, None
            if math.isnan(value):
                replicates, reason = np.empty(0), REASON
            elif metric == "siou":
                replicates, reason = np.empty(0), NONE
            known = math.nan if metric == "siou" else value
            metrics[metric] = Replicates(known, replicates, np.array([-1.0, 0, 1]), reason, "f")
            rows.append(
                {
                    "algorithm": algorithm,
                    "category": category,
                    "seed": seed,
                    "metric": metric,
                    "primary": True,
                    "defect_type": "all",
                    "value": value,
                    "reason": REASON if math.isnan(value) else None,
                }
            )
        key = {"algorithm": algorithm, "dataset": "toy", "category": category}
        path = folder / f"{algorithm}-{category}-{seed}.h5"
        write_resampled(path, ResampledRun(key | {"seed": f"seed{seed}"}, 8, 12, metrics))
        paths.append(path)
    table = pd.DataFrame(rows).reindex(columns=LONG)
    numbers = [name for name in LONG if name in NUMBERS and name not in ("value", "primary")]
    write_table(folder / "long.csv", table.fillna(dict.fromkeys(numbers, 1)))
    return Job(
        "compare", {"dataset": "toy"}, parameters,
        {"long": [folder / "long.csv"], "resampled": paths},
        {"significance": folder / "significance"}, "", {}, "", "cpu",
    )  # fmt: skip


def run(job: Job) -> Path:
    compare.body(job, Options(1, "cpu", False))
    return job.outputs["significance"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compare three algorithms on four categories with two seeds."""
    return run(make(tmp_path_factory.mktemp("compare")))


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def one(table: pd.DataFrame, **names: str) -> pd.Series:
    for column, name in names.items():
        table = table[table[column] == name]
    (_, row) = next(iter(table.iterrows()))
    assert len(table) == 1
    return row


class TestIntervals:
    def test_columns_and_rows(self, folder):
        table = read(folder / "intervals.csv")
        assert list(table) == [
            "algorithm", "category", "metric", "value", "low", "high", "seeds", "images", "reason",
        ]  # fmt: skip
        assert len(table) == 2 * 3 * 5
        assert set(table["category"]) == {*CATEGORIES, "mean"}

    def test_a_cell_is_the_mean_over_seeds_between_the_ends_of_its_replicates(self, folder):
        row = one(read(folder / "intervals.csv"), algorithm="good", category="b", metric="pl")
        assert row["value"] == pytest.approx(0.655)
        # Noise of 0.1 was added, of which 5 % lie 1.645 deviations below; seeds are 0.01 apart.
        assert row["low"] == pytest.approx(0.655 - 0.1645, abs=0.006)
        assert row["high"] == pytest.approx(0.655 + 0.1645, abs=0.006)
        assert (row["seeds"], row["images"]) == (2, 20)
        assert pd.isna(row["reason"])

    def test_a_mean_over_categories_is_surer_than_a_cell(self, folder):
        table = read(folder / "intervals.csv")
        row = one(table, algorithm="good", category="mean", metric="pl")
        assert row["value"] == pytest.approx(0.68)
        assert row["images"] == 80
        cell = one(table, algorithm="good", category="a", metric="pl")
        ratio = (row["high"] - row["low"]) / (cell["high"] - cell["low"])
        assert ratio == pytest.approx(1 / math.sqrt(4), rel=0.15)

    def test_no_replicates_no_interval_but_a_reason(self, folder):
        table = read(folder / "intervals.csv")
        cells = table[table["metric"] == "siou"]
        assert cells[["low", "high"]].isna().all(axis=None) and cells["value"].notna().all()
        assert one(cells, algorithm="good", category="a")["reason"] == NONE
        assert f"b: {NONE}" in one(cells, algorithm="good", category="mean")["reason"]

    def test_an_undefined_value_makes_its_mean_undefined_and_no_others(self, tmp_path):
        def values(algorithm: str, category: str, seed: int, metric: str) -> float:
            lost = (algorithm, category, seed) == ("twin", "c", 1)
            return math.nan if lost else value_of(algorithm, category, seed, metric)

        folder = run(make(tmp_path, values, metrics=["pl"]))
        table = read(folder / "intervals.csv")
        lost = table[table[["value", "low", "high"]].isna().all(axis=1)]
        assert set(zip(lost["algorithm"], lost["category"], strict=True)) == {
            ("twin", "c"), ("twin", "mean"),
        }  # fmt: skip
        assert list(lost["reason"]) == [REASON, f"c: {REASON}"]
        ranks = read(folder / "ranks.csv").set_index("algorithm")
        assert ranks["mean_rank"].to_dict() == pytest.approx(
            {"good": 1, "weak": 2, "twin": math.nan}, nan_ok=True
        )
        test = read_json(folder / "tests.json")["pl"]
        assert test["left_out"] == {"twin": "undefined in a category"}
        assert (
            test["friedman"]["reason"] == "2 algorithms: the Friedman test compares three or more"
        )
        pairs = read(folder / "pairs.csv")
        assert one(pairs, first="weak", second="twin")["reason"] == f"twin: c: {REASON}"
        assert one(pairs, first="good", second="weak")["low"] > 0

    def test_resamples_that_are_all_alike_are_no_certainty(self, tmp_path):
        job = make(tmp_path, metrics=["pl"])
        for path in job.inputs["resampled"]:
            algorithm, category, seed = path.stem.split("-")
            value = value_of(algorithm, category, 0, "pl")
            key = {"algorithm": algorithm, "dataset": "toy", "category": category}
            own = {"pl": Replicates(value, np.full(RESAMPLES, value), np.zeros(3), None, "f")}
            write_resampled(path, ResampledRun(key | {"seed": f"seed{seed}"}, 8, 12, own))
        long = read(job.input("long"))
        long["value"] = [
            value_of(*row, 0, "pl") for row in zip(long["algorithm"], long["category"], strict=True)
        ]
        write_table(job.input("long"), long)
        table = read(run(job) / "intervals.csv")
        assert (table["low"] == table["high"]).all() and (table["reason"] == ALIKE).all()


class TestPairs:
    def test_columns_and_order(self, folder):
        table = read(folder / "pairs.csv")
        assert list(table) == [
            "metric", "first", "second", "difference", "low", "high", "p_nemenyi", "p_wilcoxon",
            "p_holm", "reason",
        ]  # fmt: skip
        assert list(table.loc[table["metric"] == "pl", ["first", "second"]].itertuples(index=False, name=None)) == [
            ("good", "twin"), ("good", "weak"), ("twin", "weak"),
        ]  # fmt: skip
        assert (table["difference"] >= 0).all()

    def test_a_shift_is_told_apart_though_the_values_are_not_sure(self, folder):
        table = read(folder / "pairs.csv")
        row = one(table, metric="pl", first="good", second="weak")
        assert row["difference"] == pytest.approx(0.1)
        # Images are shared, so that only seeds are left, drawn anew for either: 0.01 each.
        assert 0.08 < row["low"] < 0.1 < row["high"] < 0.12
        intervals = read(folder / "intervals.csv").query("category == 'mean' and metric == 'pl'")
        ends = intervals.set_index("algorithm")
        assert ends.loc["good", "low"] < ends.loc["weak", "high"], "unpaired, they overlap"

    def test_p_values_and_their_correction(self, folder):
        table = read(folder / "pairs.csv")
        row = one(table, metric="pl", first="good", second="weak")
        assert row["p_wilcoxon"] == 0.125  # 2 of 2^4 orders of signs
        assert row["p_holm"] == pytest.approx(0.375)
        assert one(table, metric="pl", first="twin", second="weak")["p_wilcoxon"] == 1
        assert (table["p_nemenyi"] < 1).any()

    def test_equal_algorithms_have_no_signed_rank_test(self, tmp_path):
        def same(algorithm: str, category: str, seed: int, metric: str) -> float:
            return value_of("weak", category, seed, metric)

        folder = run(make(tmp_path, same, metrics=["pl"], seeds=[0]))
        table = read(folder / "pairs.csv")
        assert (table[["difference", "low", "high"]] == 0).all(axis=None)
        assert table[["p_wilcoxon", "p_holm"]].isna().all(axis=None)
        assert table["reason"].str.contains("equal in every category").all()
        test = read_json(folder / "tests.json")["pl"]
        assert test["friedman"]["reason"] == "all algorithms are equal in every category"
        assert test["friedman"]["p"] is None
        assert [sorted(group) for group in test["groups"]] == [sorted(ALGORITHMS)]

    def test_one_category_has_no_tests(self, tmp_path):
        folder = run(make(tmp_path, metrics=["pl"], categories=["a"]))
        table = read(folder / "pairs.csv")
        assert table[["p_nemenyi", "p_wilcoxon", "p_holm"]].isna().all(axis=None)
        assert table["low"].notna().all()
        assert table["reason"].str.contains("one category").all()
        test = read_json(folder / "tests.json")["pl"]
        assert test["critical_difference"] is None
        assert test["paper_measure"] == [] and "one category" in test["paper_measure_reason"]


class TestTests:
    def test_ranks(self, folder):
        table = read(folder / "ranks.csv").query("metric == 'pl'")
        assert list(table) == ["algorithm", "metric", "mean_rank", "wins"]
        assert table[["algorithm", "mean_rank", "wins"]].to_numpy().tolist() == [
            ["good", 1.0, 4], ["twin", 2.375, 0], ["weak", 2.625, 0],
        ]  # fmt: skip

    def test_json(self, folder):
        found = read_json(folder / "tests.json")
        assert set(found) == {"pl", "siou"}
        test = found["pl"]
        assert test["friedman"]["categories"] == 4
        assert test["friedman"]["statistic"] == pytest.approx(7.538, abs=0.001)
        assert test["friedman"]["p"] == pytest.approx(0.0231, abs=0.001)
        assert test["critical_difference"] == pytest.approx(2.343 * math.sqrt(12 / 24), abs=0.01)
        assert (test["alpha"], test["confidence"], test["resamples"]) == (0.05, 0.9, RESAMPLES)
        assert test["groups"] == [["good", "twin", "weak"]], "1.625 is less than the difference"
        assert test["smallest_p_wilcoxon"] == 0.125

    def test_the_papers_measure_is_another(self, folder):
        """`twin` and `weak` lie 1.5 deviations below: no error bar of one holds the best mean."""
        assert read_json(folder / "tests.json")["pl"]["paper_measure"] == []
        wide = pd.DataFrame({"best": [0.9, 0.8], "near": [0.9, 0.7], "far": [0.2, 0.1]})
        assert compare.holding_best(wide) == ["near"]

    def test_nobody_is_told_apart_where_friedmans_test_does_not_reject(self):
        rng = np.random.default_rng(3)
        table = pd.DataFrame(rng.normal(size=(5, 4)), columns=list("wxyz"))
        order = {row["algorithm"]: row["mean_rank"] for row in compare.rank_rows("pl", table)}
        test = compare.omnibus(table, order, PARAMETERS)
        assert test["friedman"]["p"] > 0.05
        assert test["groups"] == [list(order)]
        assert "does not reject" in test["groups_by"]


def test_a_bootstrap_of_another_metric_is_refused(tmp_path):
    job = make(tmp_path, metrics=["pl"])
    long = read(job.input("long"))
    long.loc[3, "value"] += 1e-6
    write_table(job.input("long"), long)
    with pytest.raises(StageError, match="pl of weak, b, seed 1: the leaderboard says"):
        run(job)


def test_missing_replicates_are_named(tmp_path):
    job = make(tmp_path, metrics=["pl"])
    del job.inputs["resampled"][-1]
    with pytest.raises(StageError, match="pl of good, d, seed 1: no replicates"):
        run(job)


def test_adding_an_algorithm_changes_no_other_interval(tmp_path, folder):
    for name in ("one",):
        (tmp_path / name).mkdir()
    fewer = run(make(tmp_path / "one", algorithms=["weak", "good"]))
    both = [read(path / "intervals.csv") for path in (folder, fewer)]
    both = [table[table["algorithm"] != "twin"].reset_index(drop=True) for table in both]
    pd.testing.assert_frame_equal(*both)


def test_the_same_job_writes_the_same_bytes(tmp_path):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folder = run(make(tmp_path / name))
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert found[0] == found[1]
    assert {"critical_difference_pl.svg", "critical_difference_pl.pdf"} <= set(found[0])


class TestFigure:
    RANKS = {"best": 1.2, "near": 1.8, "far": 3.0, "lost": math.nan}
    TEST = {
        "friedman": {"statistic": 8.0, "p": 0.01, "categories": 5, "reason": None},
        "critical_difference": 1.48, "alpha": 0.05, "groups": [["best", "near"], ["near", "far"]],
    }  # fmt: skip

    def test_points_names_and_groups(self):
        with mpl.rc_context(STYLE):
            figure = compare_figure.draw("title", self.RANKS, self.TEST)
        axes, beside = figure.axes
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "best  1.20", "near  1.80", "far  3.00",
        ]  # fmt: skip
        assert axes.yaxis_inverted()
        bars = [line.get_ydata() for line in beside.lines[:2]]
        assert [[round(float(end)) for end in bar] for bar in bars] == [[0, 1], [1, 2]]
        assert beside.lines[0].get_color() != beside.lines[1].get_color()
        assert any("1.48" in text.get_text() for text in axes.texts)

    def test_says_what_it_shows(self):
        text = compare_figure.describe("pl", self.RANKS, self.TEST)
        assert "best 1.20, near 1.80, far 3.00" in text
        assert "Groups not told apart: best, near; near, far." in text and "\n" not in text

    @pytest.mark.parametrize(
        "ranks", [{"only": 1.0}, {"lost": math.nan}], ids=["one algorithm", "none defined"]
    )
    def test_little_to_show(self, ranks):
        test = self.TEST | {
            "friedman": {"statistic": None, "p": None, "categories": 1, "reason": "too few"},
            "groups": [],
            "critical_difference": None,
        }
        figure = compare_figure.draw("title", ranks, test)
        assert "too few" in figure.axes[0].get_title(loc="left")
        assert "undefined" in compare_figure.describe("pl", ranks, test)
