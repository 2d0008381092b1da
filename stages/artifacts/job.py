"""A job file: all that one run of a stage may read, written by the plan.

A stage gets its parameters from here only, so that the fingerprint, computed from the same file,
covers by construction everything that can change its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.artifacts.files import StageError, read_json


@dataclass(frozen=True)
class Job:
    """One run of one stage."""

    stage: str
    key: Mapping[str, str]  # algorithm, dataset, category, seed, backbone: as far as they apply
    parameters: Mapping[str, Any]
    inputs: Mapping[str, list[Path]]
    outputs: Mapping[str, Path]
    fingerprint: str
    parts: Mapping[str, str]  # fingerprints of parts that are kept while only others change
    code: str  # digest of the code that the stage imports
    device: str  # where to compute: no part of the fingerprint
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages that decide results
    data: Mapping[str, str | None] = field(default_factory=dict)  # digests of source data
    upstream: Mapping[str, str] = field(default_factory=dict)  # fingerprints by job name
    forced: bool = False  # parts are not kept
    store: Path | None = None  # where finished artefacts are kept by fingerprint

    def input(self, name: str) -> Path:
        """Return the only path of an input."""
        (path,) = self.inputs[name]
        return path


def read_job(path: Path, stage: str) -> Job:
    """Read a job file.

    Raises
    ------
    StageError
        If the file is no job of this stage.
    """
    data = read_json(path)
    if data.get("stage") != stage:
        raise StageError(f"{path}: a job of stage {data.get('stage')!r}, expected {stage!r}")
    return Job(
        stage=stage,
        key=data["key"],
        parameters=data["parameters"],
        inputs={name: [Path(p) for p in paths] for name, paths in data["inputs"].items()},
        outputs={name: Path(p) for name, p in data["outputs"].items()},
        fingerprint=data["fingerprint"],
        parts=data["parts"],
        code=data["code"],
        device=data["device"],
        versions=data["versions"],
        data=data["data"],
        upstream=data["upstream"],
        forced=data["forced"],
        store=Path(data["store"]) if data["store"] else None,
    )
