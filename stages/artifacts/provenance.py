"""Where an artefact comes from: written last, so that it also says that the artefact is whole."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.artifacts.files import read_json, write_json
from stages.artifacts.job import Job

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "h5py",
    "pillow",
    "FrEIA",
    "visionad-metrics",
)


def peak_memory() -> int:
    """Return the most bytes that this process has had in memory since it started its program.

    ``getrusage`` answers another question: a program begins with the peak of the process that
    started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass
class Stopwatch:
    """Wall and processor seconds since it was made, and the process's peak memory."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def read(self) -> dict[str, float | int | None]:
        """Return seconds and bytes; the GPU's peak is null where no GPU was used."""
        torch = sys.modules.get("torch")
        gpu = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None
        return {
            "wall_seconds": round(time.perf_counter() - self.wall, 3),
            "cpu_seconds": round(time.process_time() - self.cpu, 3),
            "peak_rss_bytes": peak_memory(),
            "gpu_peak_bytes": gpu,
        }


@lru_cache
def commit() -> str | None:
    """Git commit of the code, with ``+changes`` if files differ from it; None outside Git."""
    try:
        head, changes = (
            subprocess.run(
                ["git", *command],
                capture_output=True,
                text=True,
                check=True,
                cwd=Path(__file__).parent,
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                # What runs themselves write says nothing about the code.
                ["status", "--porcelain", "-uno", "--", ":!docs", ":!results", ":!dvc.lock"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def machine() -> dict[str, Any]:
    """Describe the computer: processor, cores, system, and the GPU that torch has used."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_initialized() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": gpu,
    }


def file_sizes(folder: Path, paths: list[Path]) -> dict[str, int]:
    """Sizes in bytes of files, and of all files below folders, by path relative to ``folder``."""
    files = [
        file
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if not file.is_dir()  # an output that is missing must fail here, not be left out
    ]
    return {os.path.relpath(file, folder): file.stat().st_size for file in files}


def write_provenance(job: Job, measured: dict[str, Any], threads: int) -> None:
    """Stamp a job's outputs, after all of them are written."""
    path = job.outputs["provenance"]
    outputs = [output for name, output in job.outputs.items() if name != "provenance"]
    write_json(
        path,
        {
            "fingerprint": job.fingerprint,
            "files": file_sizes(path.parent, outputs),
            "stage": job.stage,
            "key": job.key,
            "parameters": job.parameters,
            "code": job.code,
            "versions": job.versions,
            "data": job.data,
            "upstream": job.upstream,
            "commit": commit(),
            "packages": {package: _version(package) for package in PACKAGES},
            "machine": machine(),
            "threads": threads,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "measured": measured,
        },
    )


def read_provenance(path: Path) -> dict[str, Any]:
    """Read a stamp."""
    return dict(read_json(path))
