"""Time planning, no-op and status at the size of a whole leaderboard, with artefacts faked.

    python benchmarks/scale.py --algorithms 20 --categories 15 --seeds 3 --images 5000

Everything is real but what jobs compute: a copy of the repository with that many configurations,
images and categories, whose results are small files with full stamps. Seconds are wall time of
whole commands, the fastest of several; `snakemake -n` and `dvc status` are what people wait for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stages.artifacts.job import read_job
from stages.artifacts.provenance import write_provenance
from tests.workflow.mini_repository import PADIM, Repository, draw_category, make_repository
from workflow.plan import Plan

METRICS = ["image_auroc", "pixel_auroc", "aupro", "pl", "pixel_ap"]
TARGETS = {
    "plan, warm": 3,
    "snakemake -n, nothing to do": 15,
    "snakemake, nothing to do": 15,
    "dvc status": 10,
}


def make(folder: Path, algorithms: int, categories: int, seeds: int, images: int) -> Repository:
    """Copy the repository and give it that much to do."""
    repository = make_repository(folder / "repository", [])
    names = [f"padim_{number:02}" for number in range(algorithms)]
    for number, name in enumerate(names):
        repository.write(f"algorithms/{name}.yaml", {**PADIM, "parameters": {"sigma": 1 + number}})
    repository.edit("benchmark.yaml", algorithms=names)
    repository.edit("presets/tiny.yaml", seeds=list(range(seeds)), metrics=METRICS)
    each = images // categories
    for number in range(categories):
        draw_category(
            repository.images / f"category_{number:02}", number, each - 40, 20, ("spot",), 20
        )
    return repository


def fake(plan: Plan) -> None:
    """Make every job's artefacts: files of its name, and a full stamp."""
    os.chdir(plan.root)
    plan.write()
    for job in plan.jobs.values():
        for kind, output in job.outputs.items():
            path = plan.root / output
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind in ("model", "tables", "figures", "sheet", "significance"):
                path.mkdir(exist_ok=True)
                path = path / "file"
            if kind != "provenance":
                path.write_text(f"{kind} of {job.name}", encoding="utf-8")
        write_provenance(read_job(plan.root / job.file, job.stage), {}, 1)


def timed(run: Callable[[], object], repeats: int) -> float:
    """Fewest seconds of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def expect(done: subprocess.CompletedProcess[str], text: str) -> None:
    """Check that a command did what is measured.

    Raises
    ------
    SystemExit
        With the command's output, if it did not.
    """
    if done.returncode or text not in done.stdout + done.stderr:
        sys.exit(f"{done.args}: expected {text!r}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", type=int, default=20)
    parser.add_argument("--categories", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder to work in, and to leave behind")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    os.environ["DVC_SITE_CACHE_DIR"] = str(folder / "site")
    try:
        repository = make(
            folder, arguments.algorithms, arguments.categories, arguments.seeds, arguments.images
        )
        plan = repository.plan()
        counts = Counter(job.stage for job in plan.jobs.values())
        fake(plan)
        repository.version()
        rows = measure(repository, arguments.repeats)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    print(f"\n{len(plan.jobs)} jobs: {', '.join(f'{n} {c}' for n, c in counts.items())}")
    print(f"{arguments.images} images, {len(METRICS)} metrics\n")
    print("| | seconds | target |\n|---|---:|---:|")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.1f} | {TARGETS.get(name, '')} |")


def measure(repository: Repository, repeats: int) -> dict[str, float]:
    """Time what users do, by name."""
    nothing = "Nothing to be done"
    rows = {}

    def plan() -> None:
        expect(repository.python("-m", "workflow.plan", "--targets", "summary"), "provenance")

    shutil.rmtree(repository.root / ".plan", ignore_errors=True)
    rows["plan, cold (all images hashed)"] = timed(plan, 1)
    rows["plan, warm"] = timed(plan, repeats)
    rows["first snakemake: everything to the store and to dvc.lock"] = timed(
        lambda: expect(repository.snakemake(), nothing), 1
    )
    rows["snakemake -n, nothing to do"] = timed(
        lambda: expect(repository.snakemake("-n"), nothing), repeats
    )
    rows["snakemake, nothing to do"] = timed(
        lambda: expect(repository.snakemake(), nothing), repeats
    )
    rows["dvc status"] = timed(lambda: expect(repository.dvc("status"), "up to date"), repeats)
    rows["dvc repro, nothing to do"] = timed(
        lambda: expect(repository.dvc("repro"), "up to date"), 1
    )
    repository.edit("algorithms/padim_00.yaml", parameters={"sigma": 0.5})
    rows["snakemake -n, one algorithm's parameter"] = timed(
        lambda: expect(repository.snakemake("-n"), "predict"), repeats
    )
    rows["--why, one algorithm's parameter"] = timed(
        lambda: expect(
            repository.python("-m", "workflow.plan", "--why", "results/summary"), "sigma"
        ),
        repeats,
    )
    repository.edit("algorithms/padim_00.yaml", parameters={"sigma": 1})
    shutil.rmtree(repository.root / "results/metrics")
    rows["snakemake, all metrics deleted: from the store"] = timed(
        lambda: expect(repository.snakemake(), "Restored"), 1
    )
    return rows


if __name__ == "__main__":
    main()
