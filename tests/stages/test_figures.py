"""The leaderboard figures: sorting, error bars, the count, and bytes that do not change."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from stages import figures
from stages.aggregate import COSTS, LONG, NUMBERS, write_table
from stages.artifacts.files import StageError
from stages.artifacts.job import Job
from stages.command import Options

# Means 0.9, 0.8, 0.7 and 0.5; standard deviations 0.1, 0.1, 0.2 and 0.1 (n - 1).
TABLE = pd.DataFrame(
    {
        "first": [0.8, 0.9, 1.0],
        "near": [0.7, 0.8, 0.9],
        "wide": [0.5, 0.7, 0.9],
        "far": [0.4, 0.5, 0.6],
    },
    index=pd.Index(["a", "b", "c"], name="category"),
)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def containers(figure: Figure) -> list[Any]:
    return list(figure.axes[0].containers)


def points(figure: Figure) -> list[float]:
    """Where the points are, from the top down."""
    return [float(bar.lines[0].get_xdata()[0]) for bar in containers(figure)]


def bars(figure: Figure) -> list[tuple[float, float]]:
    """Ends of the error bars, from the top down."""
    lines = [bar.lines[2][0].get_segments()[0] for bar in containers(figure)]
    return [(float(line[0][0]), float(line[1][0])) for line in lines]


def test_counts_error_bars_that_hold_the_best_mean_without_the_best() -> None:
    table = TABLE.copy()
    table["near"] += 0.001  # its bar ends at 0.901, that of `wide` at 0.9 - 0.001
    table["wide"] -= 0.001
    ranking = figures.Ranking.of(table)
    assert ranking.best == pytest.approx(0.9)
    assert ranking.holding_best() == 1
    assert "1 of 3 other algorithms" in ranking.caption(3)


def test_draws_means_and_sample_standard_deviations_in_the_given_order() -> None:
    figure = figures.draw(TABLE, "title", "pl")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(TABLE.columns)
    assert axes.yaxis_inverted()  # the best is on top
    assert points(figure) == pytest.approx([0.9, 0.8, 0.7, 0.5])
    assert bars(figure)[2] == pytest.approx((0.5, 0.9))
    assert texts(figure)[:2] == ["0.900 ± 0.100", "0.800 ± 0.100"]


def test_bars_beyond_one_are_not_cut() -> None:
    figure = figures.draw(TABLE + 0.08, "title", "pl")
    assert bars(figure)[0][1] > 1.05
    assert figure.axes[0].get_xlim()[1] > bars(figure)[0][1]


def test_one_category_has_no_error_bars() -> None:
    figure = figures.draw(TABLE.iloc[:1], "title", "pl")
    assert texts(figure) == ["0.800", "0.700", "0.500", "0.400"]
    assert figure.axes[0].get_title(loc="left") == "one category: no standard deviation"


def test_undefined_algorithms_are_named_and_have_no_point() -> None:
    table = TABLE.assign(undefined=[math.nan, 0.5, 0.6])
    figure = figures.draw(table, "title", "pl")
    assert len(points(figure)) == 4
    assert texts(figure)[-1] == "undefined"
    assert "of 3 other algorithms" in figure.axes[0].get_title(loc="left")
    nothing = figures.draw(table[["undefined"]], "title", "pl")
    assert "undefined for every algorithm" in nothing.axes[0].get_title(loc="left")


def long_csv(path: Path, values: Mapping[Any, Sequence[float]]) -> Path:
    rows: list[dict[str, Any]] = [
        {"algorithm": name, "category": category, "value": value, "metric": "pl", "method": "m"}
        | {"primary": True, "defect_type": "all"}
        for name, by_category in values.items()
        for category, value in zip("abc", by_category, strict=True)
    ]
    table = pd.DataFrame(rows).reindex(columns=LONG)
    numbers = [name for name in LONG if name in NUMBERS and name not in ("value", "primary")]
    write_table(path, table.fillna(dict.fromkeys(numbers, 1)))
    return path


def costs_csv(path: Path, names: Sequence[str]) -> Path:
    rows = [
        {"algorithm": name, "category": category, "seed": 0, "processor": "A processor"}
        | {"inference_seconds_per_image": 0.01 * place, "peak_rss_bytes": 10**8 * place}
        for place, name in enumerate(names, 1)
        for category in "abc"
    ]
    table = pd.DataFrame(rows).reindex(columns=COSTS)
    write_table(path, table.fillna({"threads": 2, "cores": 2}))
    return path


def significance(folder: Path, lows: Mapping[str, float | None]) -> Path:
    rows = [
        {"algorithm": name, "category": category, "metric": metric, "low": low, "high": 0.95}
        for name, low in lows.items()
        for category in ("a", "mean")
        for metric in ("pl", "other")
    ]
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "intervals.csv", index=False)
    return folder


def job(tmp_path: Path, place: Path, **inputs: list[Path]) -> Job:
    parameters = {
        "figures": {"formats": ["svg", "pdf", "png"], "dpi": 60},
        "title": r"costs $\1 or $2",  # a formula, and a wrong one, if it were parsed
        "algorithms": list(TABLE.columns)[::-1],
        "categories": ["a", "b", "c"],
        "metrics": ["pl"],
        "confidence": 0.9,
    }
    given = {
        "long": [long_csv(tmp_path / "long.csv", TABLE.to_dict("list"))],
        "costs": [costs_csv(tmp_path / "costs.csv", list(TABLE.columns))],
        **inputs,
    }
    outputs = {"figures": place / "leaderboard", "costs": place / "costs"}
    return Job("figures", {"dataset": "toy"}, parameters, given, outputs, "", {}, "", "cpu")


def test_body_writes_the_same_bytes_every_time(tmp_path: Path) -> None:
    found = []
    for place in (tmp_path / "one", tmp_path / "two"):
        folder = significance(tmp_path / "significance", {"first": 0.8, "near": None})
        figures.body(job(tmp_path, place, significance=[folder]), Options(1, "cpu", False))
        paths = sorted(path for path in place.rglob("*") if path.is_file())
        found.append({str(path.relative_to(place)): path.read_bytes() for path in paths})
    names = ("leaderboard/pl", "costs/pl_latency", "costs/pl_memory")
    assert set(found[0]) == {
        f"{n}.{suffix}" for n in names for suffix in ("svg", "pdf", "png", "txt")
    }
    assert found[0] == found[1]
    for name in names:
        assert b"<dc:date>" not in found[0][f"{name}.svg"]
        assert b"CreationDate" not in found[0][f"{name}.pdf"]
    with Image.open(tmp_path / "one" / "leaderboard" / "pl.png") as image:
        assert image.width == 7 * 60


def test_every_figure_says_what_it_shows(tmp_path: Path) -> None:
    figures.body(job(tmp_path, tmp_path), Options(1, "cpu", False))
    words = (tmp_path / "leaderboard" / "pl.txt").read_text()
    assert "pl of 4 algorithms, best first: first 0.900 ± 0.100, near 0.800 ± 0.100" in words
    svg = (tmp_path / "leaderboard" / "pl.svg").read_text()
    assert "<title>pl</title>" in svg and "best first: first 0.900" in svg
    with Image.open(tmp_path / "leaderboard" / "pl.png") as image:
        assert image.info["Description"] + "\n" == words


def test_intervals_of_the_means_are_broad_bars(tmp_path: Path) -> None:
    folder = significance(tmp_path / "significance", {"first": 0.8, "near": None})
    intervals = figures.read_intervals(folder / "intervals.csv", "pl", 0.9)
    figure = figures.draw(TABLE, "title", "pl", intervals)
    (collection,) = [one for one in figure.axes[0].collections if one.get_alpha() == 0.3]
    assert [segment.tolist() for segment in collection.get_segments()] == [
        [[0.8, 0.0], [0.95, 0.0]]
    ]
    assert "90% bootstrap intervals" in figure.axes[0].get_title(loc="left")


def test_thirty_five_algorithms_fit_on_a_page() -> None:
    table = pd.DataFrame({f"algorithm_{place}": [0.5, 0.9, 0.7] for place in range(35)})
    assert figures.draw(table, "title", "pl").get_size_inches()[1] < 10


def test_other_intervals_are_named(tmp_path: Path) -> None:
    (tmp_path / "intervals.csv").write_text("a,b\n1,2\n")
    with pytest.raises(StageError, match=r"intervals\.csv: not intervals of this version"):
        figures.read_intervals(tmp_path / "intervals.csv", "pl", 0.9)
