"""A job: one run of one stage, and the fingerprint of all that its result depends on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.artifacts.stamp import Stamp
from workflow.fingerprint import Program, digest

ROOT = Path(__file__).resolve().parents[1]
PLAN_FOLDER = Path(".plan")
# Where the images lie says nothing about what they show.
ADDRESSES = ("root", "outside_folders", "pretraining_folders", "textures_folder")
# What a job's key may hold, in the order in which it makes the job's name.
FIELDS = ("page", "backbone", "teacher", "algorithm", "dataset", "category", "seed")
DATA_PARTS = ("train", "validation", "test", "ground_truth")
# What a job may read of a data set: all jobs below an index see these parts of it only. A changed
# mask trains nothing anew, and neither does a changed test image.
TRAINING, VALIDATION, TEST = (frozenset({part}) for part in DATA_PARTS[:3])
TRUTH, EVERYTHING = frozenset({"test", "ground_truth"}), frozenset(DATA_PARTS)


@dataclass
class Job:
    """One run of one stage."""

    stage: str
    key: dict[str, str]
    parameters: dict[str, Any]
    outputs: dict[str, str]
    program: Program
    inputs: dict[str, list[str]] = field(default_factory=dict)
    upstream: list[Job] = field(default_factory=list)
    waits_for: list[Job] = field(default_factory=list)  # order only: no part of the fingerprint
    # Digests of source data, by name. Of those named as DATA_PARTS a job below may see some only.
    data: dict[str, str | None] = field(default_factory=dict)
    sees: dict[str, frozenset[str]] = field(default_factory=dict)  # by name of a job above
    part_programs: dict[str, Program] = field(default_factory=dict)  # code of each part alone
    versions: dict[str, str] = field(init=False)  # of the packages that decide the result
    forced: bool = False  # asked for by --forcerun: parts are not kept
    module: str = ""  # of stages/, that runs it: the stage's own, but for variants of a stage

    def __post_init__(self) -> None:
        self.module = self.module or self.stage
        self.own = self.program
        if self.part_programs:  # the packages that parts import decide the whole
            programs = (self.own, *self.part_programs.values())
            versions = {k: v for program in programs for k, v in program.versions.items()}
            self.program = replace(self.own, versions=versions)
        self.set_versions(self.program.versions)

    def set_versions(self, versions: dict[str, str]) -> None:
        """Set the package versions that the result is to be made with, or was made with."""
        self.versions = versions
        self._seen: dict[frozenset[str], str] = {}
        self.__dict__.pop("parts", None)

    @property
    def name(self) -> str:
        """E.g. ``train/patchcore/demo/weave/seed0``."""
        return "/".join([self.stage, *self.key.values()])

    @property
    def file(self) -> Path:
        """The job file, relative to the repository."""
        return PLAN_FOLDER / f"{self.name}.json"

    @cached_property
    def parts(self) -> dict[str, str]:
        """Fingerprints of parts that are kept while only others change."""
        common = {k: v for k, v in self.parameters.items() if k not in (*ADDRESSES, "metrics")}
        above = sorted(self.above().values())
        parts = {}
        for name, program in self.part_programs.items():
            packages = {*self.own.versions, *program.versions}
            versions = {k: v for k, v in self.versions.items() if k in packages}
            code = [self.own.digest, program.digest]
            metric = self.parameters["metrics"][name]
            parts[name] = digest([name, metric, common, code, versions, above])
        return parts

    @property
    def fingerprint(self) -> str:
        """What the job's result depends on, all of it, as one digest."""
        return self.seen(EVERYTHING)

    def seen(self, parts: frozenset[str]) -> str:
        """Fingerprint of what a job below sees that reads only some parts of the source data."""
        if parts in self._seen:
            return self._seen[parts]
        hashed = {k: v for k, v in self.parameters.items() if k not in ADDRESSES}
        code = [self.program.digest, self.versions]
        data = {k: v for k, v in self.data.items() if k in parts or k not in DATA_PARTS}
        above = sorted(
            job.seen(self.sees.get(job.name, EVERYTHING) & parts) for job in self.upstream
        )
        content = [self.stage, self.key, hashed, code, data, above, self.parts]
        return self._seen.setdefault(parts, digest(content))

    def above(self) -> dict[str, str]:
        """What this job sees of the jobs above it: fingerprints by name."""
        return {job.name: job.seen(self.sees.get(job.name, EVERYTHING)) for job in self.upstream}

    def accept(self, stamped: Stamp | None) -> bool:
        """Take over the package versions of an artefact that differs in nothing else."""
        if stamped is None or stamped.versions is None or stamped.versions == self.versions:
            return False
        self.set_versions(stamped.versions)
        if self.fingerprint == stamped.fingerprint and stamped.is_whole():
            return True
        self.set_versions(self.program.versions)
        return False

    def text(self, device: str, store: str | None) -> str:
        """Contents of the job file."""
        return (
            json.dumps(
                {
                    "stage": self.module,
                    "key": self.key,
                    "parameters": self.parameters,
                    "inputs": self.inputs,
                    "outputs": self.outputs,
                    "fingerprint": self.fingerprint,
                    "parts": self.parts,
                    "code": self.program.digest,
                    "versions": self.versions,
                    "data": self.data,
                    "upstream": self.above(),
                    "forced": self.forced,
                    "device": device,
                    "store": store,
                },
                indent=1,
            )
            + "\n"
        )
