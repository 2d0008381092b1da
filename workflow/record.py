"""Record finished results in dvc.lock, so that `dvc status` is clean after a `snakemake` run.

A stage of dvc.yaml is recorded when all its results are those that params/benchmark.yaml asks for;
DVC then keeps them in its cache. Snakemake calls this when it ends (pipeline: record: false in
params/benchmark.yaml switches that off); nothing happens if nothing has changed since.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from params.reading import ParamsError
from workflow.fingerprint import digest, replace_text
from workflow.job import PLAN_FOLDER, ROOT
from workflow.make import STAGES, stage_jobs, write_digests
from workflow.plan import Plan

# What dvc.yaml depends on, and what its stages make.
SOURCES = ("params", "stages", "algorithms", "metrics/visionad_metrics", "workflow", "data")
FILES = ("dvc.lock", "dvc.yaml", "constraints.txt")
RESULTS = ("results/plan", "results/code", *(f for _, made in STAGES.values() for f in made))


def _files(root: Path) -> Iterator[tuple[str, int, int]]:
    todo = [str(root / name) for name in (*SOURCES, *RESULTS)]
    while todo:
        try:
            entries = list(os.scandir(todo.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.name == "__pycache__":
                continue
            if entry.is_dir():
                todo.append(entry.path)
            else:
                status = entry.stat(follow_symlinks=False)
                yield entry.path, status.st_size, status.st_mtime_ns


def signature(root: Path) -> str:
    """Digest of all that dvc.lock is about, by sizes and times, and of dvc.lock itself."""
    texts = [
        path.read_text(encoding="utf-8") if path.is_file() else ""
        for path in (*(root / name for name in FILES), *sorted(root.glob("data/*.dvc")))
    ]
    return digest([texts, sorted(set(_files(root)))])


def _modified(entry: list[Any]) -> bool:
    """Tell whether a data set (a .dvc file) that is there has changed; not one not pulled yet."""
    changes = [change for one in entry if isinstance(one, dict) for change in one.values()]
    outs = [state for change in changes if isinstance(change, dict) for state in change.values()]
    return bool(outs) and all(state in ("modified", "new", "not in cache") for state in outs)


def record(root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Commit what is finished.

    Returns
    -------
    recorded
        Stages and data sets that changed and are recorded now.
    unfinished
        Stages that are not up to date, and therefore not recorded.

    Raises
    ------
    ParamsError
        If the parameters cannot be read.
    dvc.exceptions.DvcException
        If DVC refuses, e.g. since another of its commands runs.
    """
    from dvc.repo import Repo

    plan = Plan(root)
    write_digests(plan)
    finished = {
        name: all(plan.valid[job.name] for job in jobs) for name, jobs in stage_jobs(plan).items()
    }
    finished["plan"] = True
    for stage, (_, folders) in STAGES.items():
        if finished.get(stage):
            for folder in folders:
                (root / folder).mkdir(parents=True, exist_ok=True)
    repo = Repo(str(root))
    # Not relinked: a copy out of DVC's cache in place of the result would cut the store's link.
    try:
        changed = repo.status()
        data = [
            name for name, entry in changed.items() if name.endswith(".dvc") and _modified(entry)
        ]
        stages = [name for name in changed if finished.get(name)]
        unfinished = [name for name, done in finished.items() if not done]
        targets: list[str | None] = [*stages]
        if len(stages) > 3 and not unfinished and set(changed) <= {*finished, *data}:
            targets = [None]  # all: dvc.lock is read and written once
        # Data first: `plan` depends on data/, and so on the .dvc files in it.
        for target in [*data, *targets]:
            repo.commit(target, force=True, relink=False)
    finally:
        repo.close()
    return [*data, *stages], unfinished


def main() -> None:
    """Record, if anything has changed since the last time."""
    argparse.ArgumentParser(
        prog="python -m workflow.record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    if not (ROOT / ".dvc").is_dir() or not (ROOT / ".git").exists():
        print("not recorded: no DVC project in a Git repository here (git init, dvc init)")
        return
    memory = ROOT / PLAN_FOLDER / "recorded"
    if memory.is_file() and memory.read_text(encoding="utf-8") == signature(ROOT):
        return
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        recorded, unfinished = record()
    except (ParamsError, DvcException, LockError, OSError) as error:
        sys.exit(f"error: results are finished, but not recorded: {error}\n"
                 "Once that is mended: python -m workflow.record")  # fmt: skip
    if recorded:
        print(f"Recorded in dvc.lock: {', '.join(recorded)}")
    if unfinished:
        print(f"Not as params/benchmark.yaml asks, and not recorded: {', '.join(unfinished)}")
    replace_text(memory, signature(ROOT))


if __name__ == "__main__":
    main()
