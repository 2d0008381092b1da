"""Leaderboards in the terminal: numbers whole, best first, and every path that exists."""

import io
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from stages.aggregate import COSTS, LONG, write_table
from workflow import show


@pytest.fixture
def leaderboard(tmp_path: Path) -> Path:
    """A leaderboard of two algorithms and two categories, with one table and two figures."""
    tmp_path /= "a_long_path" * 20
    folder = tmp_path / "results" / "leaderboard" / "toy"
    values = {"weak": (0.5, 0.7), "an_algorithm_with_a_long_name": (0.9, 0.8)}
    rows = [
        {
            "dataset": "toy",
            "category": category,
            "algorithm": algorithm,
            "seed": 0,
            "metric": metric,
            "primary": True,
            "defect_type": "all",
            "value": value,
            "good_images": 1,
            "defective_images": 1,
            "image_size": 64,
            "evaluation_size": 64,
            "train_seconds": 12.34,
            "inference_seconds_per_image": 0.0105,
            "peak_rss_bytes": 400 * 10**6,
        }
        for metric in ("image_auroc", "pixel_auroc", "aupro", "pl")
        for algorithm, pair in values.items()
        for category, value in zip("ab", pair, strict=True)
    ]
    table = pd.DataFrame(rows)
    write_table(folder / "long.csv", table.reindex(columns=LONG))
    runs = table.drop_duplicates(["algorithm", "category"])
    write_table(folder / "costs.csv", runs.reindex(columns=COSTS))
    figures = tmp_path / "results" / "figures" / "toy"
    for path in (
        folder / "leaderboard.md",
        folder / "tables" / "pl.csv",
        figures / "leaderboard" / "pl.svg",
        figures / "leaderboard.provenance.json",
        figures / "sheets" / "weak" / "sheet.png",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_prints_whole_numbers_best_first_also_in_a_narrow_terminal(leaderboard: Path) -> None:
    output = io.StringIO()
    show.show([leaderboard], Console(file=output, width=40))
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("toy (2 categories)")
    first = next(number for number, line in enumerate(lines) if "0.850 ± 0.071" in line)
    assert lines[first].split()[0] == "an_algorithm_with_a_long_name"
    assert lines[first].count("0.850 ± 0.071") == 4
    assert lines[first].split()[-3:] == ["12.3", "10.5", "400"]
    assert lines[first + 1].split()[0] == "weak"
    assert "…" not in output.getvalue()


def test_lists_what_exists_in_one_piece_each(leaderboard: Path) -> None:
    output = io.StringIO()
    show.show([leaderboard], Console(file=output, width=40))
    paths = [Path(line.strip()) for line in output.getvalue().splitlines() if "/results/" in line]
    results = leaderboard.parent.parent
    assert [path.relative_to(results).as_posix() for path in paths] == [
        "leaderboard/toy/leaderboard.md",
        "leaderboard/toy/long.csv",
        "leaderboard/toy/costs.csv",
        "leaderboard/toy/tables/pl.csv",
        "figures/toy/leaderboard/pl.svg",
        "figures/toy/sheets/weak/sheet.png",
    ]


def test_a_missing_leaderboard_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["show", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"none/long\.csv: no such file; run snakemake"):
        show.main()
