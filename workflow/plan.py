"""The plan: parameters -> jobs -> fingerprints -> what is valid.

A job's fingerprint is a digest of its stage, of the parameters that it reads, of the code that it
imports, of its source data, and of the fingerprints of the jobs above it. An artefact is valid when
its stamp (`provenance.json`) carries the job's fingerprint and its files have the sizes that were
stamped: nothing else counts, least of all times.

    python -m workflow.plan                  write the job files below .plan/
    python -m workflow.plan --list           list all jobs and their state
    python -m workflow.plan --config preset=cpu_real --list train
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import yaml

from params.reading import ParamsError
from workflow.jobs import FIELDS, PLAN_FOLDER, ROOT, Job, Jobs


class Plan(Jobs):
    """A run's jobs, and which of them are valid."""

    def __init__(self, root: Path = ROOT, overrides: Mapping[str, Any] | None = None) -> None:
        super().__init__(root, overrides)
        self._whole: dict[str, bool] = {}

    @cached_property
    def valid(self) -> dict[str, bool]:
        """Validity of every job's artefacts, by job name."""
        return {name: job.is_valid(self.root) for name, job in self.jobs.items()}

    def job(self, stage: str, wildcards: Mapping[str, str]) -> Job:
        """Find a job by its stage and Snakemake's wildcards."""
        job = self.jobs.get("/".join([stage, *(wildcards[f] for f in FIELDS if f in wildcards)]))
        if job is not None:
            return job
        raise ParamsError(
            f"{stage} of {dict(wildcards)} is not part of this run; "
            f"name it, e.g. --config algorithms='[{wildcards.get('algorithm', '...')}]'"
        )

    def whole(self, job: Job) -> bool:
        """Tell whether a job and all above it are valid: nothing that it reads will be remade."""
        if job.name not in self._whole:
            self._whole[job.name] = self.valid[job.name] and all(map(self.whole, job.upstream))
        return self._whole[job.name]

    def targets(self, *stages: str) -> list[str]:
        """Stamps of all jobs of some stages; of all jobs, if none is named."""
        return [
            job.outputs["provenance"]
            for job in self.jobs.values()
            if not stages or job.stage in stages
        ]

    def write(self) -> None:
        """Write the job files, with times that translate validity into Snakemake's terms.

        A job's file is its rule's input: ancient while the artefact is valid, new when it is not.
        """
        now = time.time()
        for name, job in self.jobs.items():
            path = self.root / job.file
            text = job.text(self.run.benchmark.device)
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
                temporary.write_text(text, encoding="utf-8")
                os.replace(temporary, path)
            moment = 1.0 if self.valid[name] else now
            os.utime(path, (moment, moment))


def lock(root: Path = ROOT) -> IO[str]:
    """Take the plan's lock for as long as this process lives; a killed one leaves none behind.

    Raises
    ------
    ParamsError
        If another process is running the pipeline here.
    """
    path = root / PLAN_FOLDER / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise ParamsError(
            f"another snakemake runs in this folder (process {file.read().strip() or '?'}); "
            "wait for it to end"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def typed(value: Any, key: str = "") -> Any:
    """Give the leaves of nested ``--config`` values their types: Snakemake leaves them strings."""
    if key in ("datasets", "roots", "algorithms", "metrics"):
        return value  # names, which may look like numbers
    if isinstance(value, Mapping):
        return {name: typed(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Parse ``key=value`` words, values being YAML."""
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


def main() -> None:
    """Write the job files; list jobs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--list", nargs="*", metavar="STAGE", help="print jobs and their state")
    parser.add_argument("--targets", nargs="+", metavar="STAGE", help="print what stages make")
    arguments = parser.parse_args()
    try:
        plan = Plan(overrides=parse_overrides(arguments.config))
        if arguments.list is None and not arguments.targets:
            with lock():
                plan.write()
    except ParamsError as error:
        sys.exit(f"error: {error}")
    if arguments.list is not None:
        for name, job in plan.jobs.items():
            if not arguments.list or job.stage in arguments.list:
                state = "valid" if plan.valid[name] else "stale"
                print(f"{state}  {job.fingerprint[:12]}  {name}")
    if arguments.targets:
        print("\n".join(plan.targets(*arguments.targets)))


if __name__ == "__main__":
    main()
