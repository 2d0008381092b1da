"""The plan: parameters -> jobs -> fingerprints -> what is valid.

A job's fingerprint is a digest of its stage, of the parameters that it reads, of the code that it
imports, of its source data, and of the fingerprints of the jobs above it. An artefact is valid when
its stamp (`provenance.json`) carries the job's fingerprint and its files have the sizes that were
stamped: nothing else counts, least of all times.

    python -m workflow.plan                  write the job files below .plan/
    python -m workflow.plan --list           list all jobs and their state
    python -m workflow.plan --why results/leaderboard/demo   why it must run, in words
    python -m workflow.plan --config preset=cpu_real --list train --json
    python -m workflow.plan --gc 5           shrink the store of finished results to 5 GB
"""

from __future__ import annotations

import argparse
import difflib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePath
from typing import IO, Any

import yaml

from params.reading import ParamsError
from stages.artifacts.store import Store
from workflow.fingerprint import replace_text, update_text
from workflow.job import FIELDS, PLAN_FOLDER, ROOT, Job
from workflow.jobs import Jobs

CODE_FOLDER = PLAN_FOLDER / "code"  # what the code was that a fingerprint covers, for --why


# Validity in Snakemake's terms, times in seconds since 1970: a valid job's file is older than any
# output, a stale one's newer than its stamp. No clock is read, so none can be too coarse or wrong.
VALID_JOB, STALE_STAMP, STALE_JOB = 0, 1, 2
STORE = ".store"


class Plan(Jobs):
    """A run's jobs: which are valid, which the store can bring back, which must run."""

    def __init__(self, root: Path = ROOT, overrides: Mapping[str, Any] | None = None) -> None:
        super().__init__(root, overrides)
        self.store = Store(root / STORE) if self.run.benchmark.pipeline.store_gb else None
        self.valid = {name: self._is_valid(job) for name, job in self.jobs.items()}
        self._whole: dict[str, bool] = {}

    def _forget(self) -> None:
        """Forget what follows from validity."""
        for name in ("restorable", "absent"):
            self.__dict__.pop(name, None)
        self._whole.clear()

    def _is_valid(self, job: Job) -> bool:
        stamp = self.stamps[job.name]
        return stamp is not None and stamp.fingerprint == job.fingerprint and stamp.is_whole()

    @cached_property
    def restorable(self) -> dict[str, Job]:
        """Jobs that need not run, since the store has what they would make."""
        kept = self.store.fingerprints() if self.store else set()
        return {
            name: job
            for name, job in self.jobs.items()
            if not self.valid[name] and not job.forced and job.fingerprint in kept
        }

    @cached_property
    def absent(self) -> set[str]:
        """Paths of what is not there, and yet no job will make: a dry run restores nothing."""
        return {path for job in self.restorable.values() for path in job.outputs.values()}

    @property
    def fingerprints(self) -> set[str]:
        """Fingerprints of all jobs."""
        return {job.fingerprint for job in self.jobs.values()}

    @property
    def stale(self) -> list[Job]:
        """Jobs that must run."""
        return [job for job in self.jobs.values() if self.must_run(job)]

    def must_run(self, job: Job) -> bool:
        """Tell whether a job's result is neither in its place nor in the store."""
        return not self.valid[job.name] and job.name not in self.restorable

    def job(self, stage: str, wildcards: Mapping[str, str]) -> Job:
        """Find a job by its stage and Snakemake's wildcards."""
        job = self.jobs.get("/".join([stage, *(wildcards[f] for f in FIELDS if f in wildcards)]))
        if job is not None:
            return job
        raise ParamsError(
            f"{stage} of {dict(wildcards)} is not part of this run; "
            f"name it, e.g. --config algorithms='[{wildcards.get('algorithm', '...')}]'"
        )

    def find(self, target: str) -> list[Job]:
        """Find jobs by name, or by a path that they make, or that holds what they make.

        Raises
        ------
        ParamsError
            If no job of this run fits.
        """
        path = PurePath(os.path.normpath(target))
        found = [
            job
            for job in self.jobs.values()
            if PurePath(job.name).is_relative_to(path)
            or any(
                path.is_relative_to(made) or PurePath(made).is_relative_to(path)
                for made in job.outputs.values()
            )
        ]
        if found:
            return found
        close = difflib.get_close_matches(target, self.jobs, n=3, cutoff=0.4)
        raise ParamsError(
            f"{target}: no job of this run makes it; did you mean {' or '.join(close) or '--list'}?"
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

    def force(self, asked: Callable[[Job], bool]) -> None:
        """Take jobs, and all that depend on them, for stale."""
        for job in self.jobs.values():  # upstream ones come first
            if asked(job) or any(above.forced for above in job.upstream):
                job.forced = True
                job.set_versions(job.program.versions)
                self.valid[job.name] = False
        self._forget()

    def keep(self) -> None:
        """Take what lies in ``results/`` into the store, before anything overwrites it.

        That holds for what is stale, too: the parameter may be set back.
        """
        if self.store is None:
            return
        kept = self.store.fingerprints()
        for stamp in self.stamps.values():
            if stamp is not None and stamp.fingerprint not in kept:
                self.store.keep(stamp)

    def restore(self) -> list[Job]:
        """Bring back from the store what it has, and return those jobs.

        Raises
        ------
        ParamsError
            If that fails: the disk is full, say.
        """
        back = []
        for name, job in self.restorable.items():
            places = {kind: self.root / path for kind, path in job.outputs.items()}
            target = places.pop("provenance")
            try:
                if self.store and self.store.restore(job.fingerprint, target, places.values()):
                    self.valid[name] = True
                    back.append(job)
            except OSError as error:
                raise ParamsError(f"{target}: cannot be restored from {STORE}/: {error}") from None
        self._forget()
        return back

    def collect(self) -> None:
        """Keep the store under its cap."""
        if self.store is not None and self.store.folder.is_dir():
            self.store.collect(self.run.benchmark.pipeline.store_gb * 1e9, self.fingerprints)

    def write(self) -> None:
        """Write the job files, with times that translate validity into Snakemake's terms.

        A job's file is its rule's input, and a stamp one of its outputs.
        """
        store = STORE if self.store else None
        manifests = {job.program.digest: job.program.modules for job in self.jobs.values()}
        for code, modules in manifests.items():
            path = self.root / CODE_FOLDER / f"{code}.json"
            if not path.is_file():
                replace_text(path, json.dumps(self.source.manifest(*modules)))
        for name, job in self.jobs.items():
            path = self.root / job.file
            text = job.text(self.run.benchmark.device, store)
            update_text(path, text)
            moment = VALID_JOB if self.valid[name] else STALE_JOB
            os.utime(path, (moment, moment))
            if not self.valid[name] and self.stamps[name] is not None:
                os.utime(self.root / job.outputs["provenance"], (STALE_STAMP, STALE_STAMP))


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


def versions_warning(jobs: Sequence[Job]) -> str:
    """Say which results are kept although packages have other versions now."""
    differences = {
        f"{name} {old} (now {job.program.versions.get(name, 'absent')})"
        for job in jobs
        for name, old in job.versions.items()
        if job.program.versions.get(name) != old
    }
    return (
        f"{len(jobs)} results, e.g. {jobs[0].name}, were made with "
        f"{', '.join(sorted(differences))}; they are kept, as pipeline: package_versions: warn asks"
    )


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


def listed(plan: Plan, job: Job) -> dict[str, Any]:
    """Lay out a job and its state for people and programs."""
    state = "stale"
    if plan.valid[job.name]:
        state = "valid"
    elif job.name in plan.restorable:
        state = "stored"
    return {"job": job.name, "state": state, "fingerprint": job.fingerprint}


def main() -> None:
    """Write the job files; list jobs; explain; collect the store."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--list",
        nargs="*",
        metavar="STAGE",
        help="print jobs: valid, stored (restored without a job) or stale",
    )
    parser.add_argument("--targets", nargs="+", metavar="STAGE", help="print what stages make")
    parser.add_argument(
        "--why", nargs="*", metavar="TARGET", help="explain why jobs (or paths) must run; none: all"
    )
    parser.add_argument("--json", action="store_true", help="print --list or --why as JSON")
    parser.add_argument(
        "--gc", type=float, metavar="GB", help="shrink the store, the longest unused first"
    )
    arguments = parser.parse_args()
    try:
        plan = Plan(overrides=parse_overrides(arguments.config))
        if plan.other_versions:
            print(f"warning: {versions_warning(plan.other_versions)}", file=sys.stderr)
        if arguments.why is not None:
            why(plan, arguments.why, arguments.json)
        elif arguments.gc is not None:
            with lock():
                gone = Store(plan.root / STORE).collect(arguments.gc * 1e9, plan.fingerprints)
            print(
                f"{STORE}: removed {gone.removed} results ({gone.freed / 1e9:.2f} GB), "
                f"left {gone.left} ({gone.size / 1e9:.2f} GB of its own)"
            )
        elif arguments.list is None and not arguments.targets and not arguments.json:
            with lock():
                plan.write()
    except ParamsError as error:
        sys.exit(f"error: {error}")
    if arguments.list is not None or (arguments.json and arguments.why is None):
        wanted = arguments.list or []
        jobs = [
            listed(plan, job) for job in plan.jobs.values() if not wanted or job.stage in wanted
        ]
        if arguments.json:
            print(json.dumps(jobs, indent=1))
        else:
            for one in jobs:
                print(f"{one['state']:<6} {one['fingerprint'][:12]}  {one['job']}")
    if arguments.targets:
        print("\n".join(plan.targets(*arguments.targets)))


def why(plan: Plan, targets: list[str], as_json: bool) -> None:
    """Print why the jobs of some targets, or all that are stale, must run."""
    from workflow.why import Why

    explainer = Why(plan)
    found = [job for target in targets for job in plan.find(target)] if targets else plan.stale
    jobs = list({job.name: job for job in found}.values())
    if as_json:
        print(json.dumps([explainer.facts(job) for job in jobs], indent=1))
        return
    if not jobs:
        print("nothing must run")
    for line in explainer.explain(jobs):
        print(line)


if __name__ == "__main__":
    main()
