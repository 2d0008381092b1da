"""What tests ask of a run: which jobs ran, whether both engines are content, what came out."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from tests.workflow.mini_repository import Repository
from workflow.job import Job
from workflow.plan import Plan

MESSAGES = {
    "index": "indexing {dataset}/{category}",
    "check": "checking {dataset}",
    "features": "features of {dataset}/{category} by {backbone}",
    "train": "training {algorithm} on {dataset}/{category}, seed {number}",
    "predict": "predicting {algorithm} on {dataset}/{category}, seed {number}",
    "evaluate": "evaluating {algorithm} on {dataset}/{category}, seed {number}",
    "resample": "resampling {algorithm} on {dataset}/{category}, seed {number}",
    "sheet": "anomaly maps of {algorithm} on {dataset}",
    "aggregate": "leaderboard of {dataset}",
    "compare": "significance on {dataset}",
    "figures": "figures of {dataset}",
    "summary": "summary of all leaderboards",
    "pictures": "gallery images of {dataset}",
    "gallery": "gallery maps of {algorithm} on {dataset}",
    "report": "report of all leaderboards",
}
VALUES = ["category", "algorithm", "seed", "metric", "method", "defect_type", "value"]
LATE = {"aggregate/folder", "compare/folder", "figures/folder", "summary", "report"}


def message(job: Job) -> str:
    """What Snakemake prints when it runs a job."""
    number = job.key.get("seed", "").removeprefix("seed")
    return MESSAGES[job.stage].format(**job.key, number=number)


def of(
    *stages: str,
    algorithms: Iterable[str] = ("random", "padim", "patchcore"),
    categories: Iterable[str] = ("bolt", "nut"),
    seeds: Iterable[int] = (0, 1),
) -> set[str]:
    """Names of the jobs of some stages."""
    names = set()
    for stage in stages:
        for algorithm in algorithms:
            if stage in ("sheet", "gallery"):
                names.add(f"{stage}/{algorithm}/folder")
            for category in categories:
                if stage in ("train", "predict", "evaluate", "resample"):
                    names |= {f"{stage}/{algorithm}/folder/{category}/seed{k}" for k in seeds}
                if stage == "index":
                    names.add(f"index/folder/{category}")
                if stage == "features":
                    names.add(f"features/tiny/folder/{category}")
    return names


def ran(done: subprocess.CompletedProcess[str], *plans: Plan) -> set[str]:
    """Names of the jobs that a command has run, or would; each at most once."""
    names = {message(job): name for plan in plans for name, job in plan.jobs.items()}
    printed = re.findall(r"^Job \d+: (.+)$", done.stdout + done.stderr, re.MULTILINE)
    counts = Counter(names[text] for text in printed if text != "None")
    assert not counts or set(counts.values()) == {1}, f"a job ran twice: {counts}"
    return set(counts)


def succeeds(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Return a finished command, if it was successful."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def assert_clean(repository: Repository) -> None:
    """Both engines have nothing to do."""
    done = repository.snakemake("-n")
    assert "Nothing to be done" in done.stdout + done.stderr, done.stdout + done.stderr
    status = repository.dvc("status")
    assert "up to date" in status.stdout, status.stdout + status.stderr


def values(repository: Repository) -> list[Mapping[str, Any]]:
    """What the leaderboard says, without times and memory."""
    table = pd.read_csv(repository.root / "results/leaderboard/folder/long.csv")
    return table[VALUES].to_dict("records")
