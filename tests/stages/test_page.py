"""The page of results: published numbers only where they belong, and nothing that is typed."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages import page
from stages.aggregate import COSTS, LONG, commits, write_table
from stages.artifacts.files import StageError
from stages.artifacts.job import Job
from stages.command import Options

PUBLISHED = """source,dataset,metric,algorithm,category,value
visionad,mvtec_ad,pl,padim,screw,0.998
visionad,mvtec_ad,image_auroc,padim,screw,0.111
visionad,mvtec_ad,pl,random,bottle,0.222
"""
SOURCES = """visionad:
  title: The paper
  url: https://example.org/paper
  year: 2024
  protocol: Two hours on a GPU.
"""
RUN = [
    ("mvtec_ad", "screw", "random", 0.5, None),
    ("mvtec_ad", "screw", "padim", 0.9931, None),
    ("mpdd", "screw", "random", 0.25, None),
    ("mpdd", "screw", "padim", None, "no good image"),
]

TRAINING: dict[str, dict[str, Any]] = {
    "padim": {
        "here": {"epochs": 5, "batch_size": 2, "steps_per_epoch": None},
        "publication": {"epochs": 70, "batch_size": 16, "steps_per_epoch": None},
        "teachers": {},
        "base": "random",
    },
    "random": {
        "here": {"epochs": 4, "batch_size": 1, "steps_per_epoch": 20},
        "publication": {"epochs": 7, "batch_size": 1, "steps_per_epoch": 1000},
        "teachers": {
            "small": {"here": 10, "publication": 600},
            "large": {"here": 20, "publication": 700},
        },
        "base": None,
    },
}


def write_tables(folder: Path, dataset: str, seeds: tuple[int, ...] = (0,)) -> dict[str, Path]:
    rows = [
        {
            "dataset": dataset,
            "category": category,
            "algorithm": algorithm,
            "seed": seed,
            "metric": "pl",
            "method": "main",
            "primary": True,
            "defect_type": "all",
            "value": None if value is None else value + 0.002 * seed,
            "reason": reason,
            "evaluation_size": 128,
            "good_images": 1,
            "defective_images": 1,
            "image_size": 64,
            "train_seconds": 12.0 + seed,
            "inference_seconds_per_image": 0.0105,
            "peak_rss_bytes": 400 * 10**6,
            "epochs": 3,
            "stopped_by": "budget",
            "cpu_seconds": 20.0,
            "threads": 2,
            "cores": 4,
            "processor": "A processor",
            "packages": "python 3.11.7, torch 2.9.0",
            "commit": "abcdef0123456789",
        }
        for name, category, algorithm, value, reason in RUN
        if name == dataset
        for seed in seeds
    ]
    table = pd.DataFrame(rows)
    paths = {"long": folder / f"{dataset}_long.csv", "costs": folder / f"{dataset}_costs.csv"}
    write_table(paths["long"], table.reindex(columns=LONG))
    write_table(paths["costs"], table.reindex(columns=COSTS))
    return paths


def write_page(
    folder: Path, published: str | None = PUBLISHED, seeds: tuple[int, ...] = (0,), **changes: Any
) -> str:
    paths = [write_tables(folder, name, seeds) for name in ("mvtec_ad", "mpdd")]
    inputs = {kind: [one[kind] for one in paths] for kind in ("long", "costs")}
    if published is not None:
        inputs["published"] = [folder / "published.csv"]
        inputs["published"][0].write_text(published)
        (folder / "sources.yaml").write_text(SOURCES)
    settings: dict[str, dict[str, Any]] = {
        "padim": {"backbone": "resnet18", "image_size": 64, "epochs": 1, "train_seconds": 400},
        "random": {"backbone": None, "image_size": 64, "epochs": 1, "train_seconds": 400},
    }
    larger = {name: {**one, "image_size": 96} for name, one in settings.items()}
    parameters = {
        "title": "Results",
        "preset": "cpu_real",
        "datasets": [
            {"name": "mvtec_ad", "categories": ["screw"], "licence": "CC BY"},
            {"name": "mpdd", "categories": ["screw"], "licence": None},
        ],
        "settings": {"mvtec_ad": settings, "mpdd": larger},
        "training": TRAINING,
        "notes": ["the screws are dark"],
        "budget_seconds": 400,
        "page": "docs/results.md",
        **changes,
    }
    outputs = {"page": folder / "docs" / "results.md"}
    job = Job("page", {}, parameters, inputs, outputs, "", {}, "", "cpu")
    page.body(job, Options(1, "cpu", False))
    return outputs["page"].read_text()


def cells(text: str, heading: str) -> dict[str, list[str]]:
    """Rows of the table below a heading, by their first cell."""
    section = text.split(f"## {heading}\n\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_published_numbers_stand_beside_their_own_categories_only(tmp_path: Path) -> None:
    text = write_page(tmp_path)
    table = cells(text, "pl")
    assert table["algorithm"] == ["mvtec_ad/screw", "mpdd/screw"]
    assert table["random"] == ["0.500", "0.250"]
    # The second is the same category name, but not the same data.
    assert table["padim"] == ["0.993 (paper 0.998)", "nan"]
    assert "* nan in mpdd/screw: no good image" in text
    assert "under other protocols" in text
    assert "* [The paper](https://example.org/paper): Two hours on a GPU." in text


def test_without_published_numbers_the_page_does_not_mention_the_paper(tmp_path: Path) -> None:
    text = write_page(tmp_path, published=None)
    table = cells(text, "pl")
    assert [table[name][0] for name in ("random", "padim")] == ["0.500", "0.993"]
    assert "paper" not in text


def test_seeds_are_averaged_and_their_spread_is_shown(tmp_path: Path) -> None:
    text = write_page(tmp_path, published=None, seeds=(0, 1, 2))
    table = cells(text, "pl")
    assert [table[name][0] for name in ("random", "padim")] == ["0.502 ± 0.002", "0.995 ± 0.002"]
    assert "seeds 0, 1, 2" in text
    assert cells(text, "Costs")["mvtec_ad/screw"][1] == "13.0"


def test_how_far_training_came_stands_beside_the_publication(tmp_path: Path) -> None:
    table = cells(write_page(tmp_path), "Training")
    assert table["padim"] == [
        "3",
        "budget",
        "5, batch 2, after random",
        "70, batch 16, after random",
        "",
    ]
    assert table["random"][2:] == [
        "4 of 20 steps, batch 1",
        "7 of 1000 steps, batch 1",
        "small 10 (600), large 20 (700)",
    ]


def test_says_how_it_was_made(tmp_path: Path) -> None:
    text = write_page(tmp_path)
    assert text.startswith("<!-- Generated by stages/page.py")
    assert "`snakemake --config preset=cpu_real`" in text
    for fact in (
        "training budget 400 s",
        "128 px",
        "commit abcdef012345.",
        "A processor, 4 cores, 2 threads, GPU none",
        "python 3.11.7, torch 2.9.0",
    ):
        assert fact in text
    assert "## Notes\n\n* the screws are dark\n" in text
    assert cells(text, "Data")["mpdd"] == ["screw", "not stated"]
    assert cells(text, "Settings")["random"] == ["none", "64 px, but 96 px (mpdd)"]
    assert cells(text, "Costs")["mpdd/screw"] == [
        "padim", "12.0", "3", "budget", "10.5", "20.0", "400",
    ]  # fmt: skip


def test_says_which_commit_made_which_rows(tmp_path: Path) -> None:
    costs = pd.DataFrame(
        {
            "algorithm": ["padim", "padim", "spade", "random"],
            "commit": ["a" * 40, "a" * 40, "a" * 40, "b" * 40 + "+changes"],
        }
    )
    assert commits(costs) == f"{'a' * 12}, but {'b' * 12}+changes (random)"
    costs.loc[1, "commit"] = None
    assert commits(costs.iloc[:2]) == "a" * 12


def test_no_preset_and_no_budget(tmp_path: Path) -> None:
    text = write_page(tmp_path, preset=None, budget_seconds=None)
    assert "`snakemake`" in text and "training budget unlimited" in text


@pytest.mark.parametrize("broken", ["a,b\n1,2\n", PUBLISHED + "visionad,x,pl,padim,pill,9\n"])
def test_a_broken_published_table_is_named(tmp_path: Path, broken: str) -> None:
    with pytest.raises(StageError, match=r"published\.csv: "):
        write_page(tmp_path, published=broken)
