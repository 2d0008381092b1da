"""What every stage's command line shares: options, threads, error messages, provenance."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.artifacts.files import StageError
from stages.artifacts.job import Job, read_job
from stages.artifacts.provenance import Stopwatch, write_provenance
from stages.artifacts.stamp import read_stamp
from stages.artifacts.store import Store

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Options:
    """What a stage's caller decides and no result depends on."""

    threads: int
    device: str
    progress: bool


Body = Callable[[Job, Options], dict[str, Any]]


def run(stage: str, description: str | None, body: Body) -> None:
    """Run a stage's ``body`` on the job file named on the command line, and exit.

    The body writes the job's outputs and returns what it measured; the stamp is written last. A
    :class:`StageError` becomes one message and exit code 1.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage}",
        description=(description or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Job files are written by `python -m workflow.plan` (below .plan/); snakemake does "
        "so by itself.",
    )
    parser.add_argument("job", type=Path, help=f"job file, e.g. .plan/{stage}/.../seed0.json")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default: the job's")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    arguments = parser.parse_args()
    limit_threads(arguments.threads)
    if arguments.no_progress:
        os.environ["TQDM_DISABLE"] = "1"
    try:
        job = read_job(arguments.job, stage)
        options = Options(
            arguments.threads, arguments.device or job.device, not arguments.no_progress
        )
        execute(job, options, body)
    except StageError as error:
        sys.exit(f"error: {error}")


def limit_threads(threads: int) -> None:
    """Bound the threads of libraries: two processes with two each on two cores spin."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if "numpy" in sys.modules:  # a library that is loaded already reads no variables any more
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)


def execute(job: Job, options: Options, body: Body) -> None:
    """Run ``body``, stamp its outputs, and keep them in the store.

    A stale stamp goes first, so that no half is whole.
    """
    job.outputs["provenance"].unlink(missing_ok=True)
    stopwatch = Stopwatch()
    measured = body(job, options)
    write_provenance(job, {**measured, **stopwatch.read()}, options.threads)
    stamp = read_stamp(job.outputs["provenance"])
    if job.store is not None and stamp is not None:
        Store(job.store).keep(stamp)
