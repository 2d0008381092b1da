"""Make one stage of dvc.yaml: ask Snakemake for its results, unless they are valid already.

    python -m workflow.make plan               write results/plan/ and results/code/
    python -m workflow.make train patchcore    the models of one algorithm

What runs is what params/benchmark.yaml says; `snakemake --config` is for other runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from params.reading import ParamsError, read_yaml
from stages.artifacts.files import remove
from workflow.fingerprint import update_text
from workflow.job import ROOT, Job
from workflow.plan import Plan, lock

# DVC's stages: the pipeline's own that each holds, and the folders that it makes.
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": (("demo_data",), ("data/demo",)),
    "index": (("index", "check"), ("results/index", "results/check")),
    "features": (("features", "augment", "teach"), ("results/features", "results/teachers")),
    "train": (("train",), ("results/models",)),
    "predict": (("predict",), ("results/maps",)),
    "evaluate": (("evaluate", "resample"), ("results/metrics", "results/resampled")),
    "aggregate": (
        ("aggregate", "summary", "compare"),
        ("results/leaderboard", "results/summary", "results/significance"),
    ),
    "figures": (("figures", "sheet", "localisation", "learning", "page"), ("results/figures",)),
    "report": (("pictures", "gallery", "report"), ("results/gallery", "results/report")),
}
BY_ALGORITHM = ("train", "predict", "evaluate")
PLAN, CODE = Path("results/plan"), Path("results/code")


def stage_jobs(plan: Plan) -> dict[str, list[Job]]:
    """Sort a plan's jobs into DVC's stages, by name, e.g. ``train@patchcore``."""
    found: dict[str, list[Job]] = {}
    for stage, (kinds, _) in STAGES.items():
        if stage not in BY_ALGORITHM:
            found[stage] = []
        for job in plan.jobs.values():
            if job.stage in kinds:
                name = f"{stage}@{job.key['algorithm']}" if stage in BY_ALGORITHM else stage
                found.setdefault(name, []).append(job)
    return found


def check_algorithms(plan: Plan) -> None:
    """Check that dvc.yaml sees the algorithms that the run has.

    Raises
    ------
    ParamsError
        If the preset lays other algorithms over those of ``params/benchmark.yaml``, which is
        where dvc.yaml reads them.
    """
    path = plan.root / "params" / "benchmark.yaml"
    data = read_yaml(path)
    if data.get("algorithms") != list(plan.run.benchmark.algorithms):
        raise ParamsError(
            f"{path}: algorithms: {data.get('algorithms')}, but the preset {data.get('preset')} "
            f"has {list(plan.run.benchmark.algorithms)}; dvc.yaml reads them here: write that list"
        )


def write_digests(plan: Plan) -> None:
    """Write what DVC's stages depend on: fingerprints by stage and algorithm, and what code was.

    Files are written when their content changes, and those of stages that are gone are removed.
    """
    check_algorithms(plan)
    texts: dict[Path, str] = {}
    for name, jobs in stage_jobs(plan).items():
        fingerprints = {job.name: job.fingerprint for job in jobs}
        path = PLAN / f"{name.replace('@', '/')}.json"
        texts[path] = json.dumps(fingerprints, indent=1, sort_keys=True) + "\n"
    for job in plan.jobs.values():
        path = CODE / f"{job.program.digest}.json"
        if path not in texts:
            texts[path] = json.dumps(plan.source.manifest(*job.program.modules), indent=1) + "\n"
    for path, text in texts.items():
        update_text(plan.root / path, text)
    for folder in (PLAN, CODE):
        for file in (plan.root / folder).rglob("*.json"):
            if file.relative_to(plan.root) not in texts:
                remove(file)


def main() -> None:
    """Make one stage."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow.make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=["plan", *STAGES])
    parser.add_argument("algorithm", nargs="?", help=f"for {', '.join(BY_ALGORITHM)}")
    arguments = parser.parse_args()
    if importlib.util.find_spec("snakemake") is None:
        # Another Python has other packages, too: for it, every result would be stale.
        sys.exit(
            f"error: {sys.executable} has no snakemake; activate the project's environment "
            "(source .venv/bin/activate) and run dvc again"
        )
    try:
        plan = Plan()
        if arguments.stage == "plan":
            with lock():
                write_digests(plan)
            return
    except ParamsError as error:
        sys.exit(f"error: {error}")
    if (arguments.stage in BY_ALGORITHM) != (arguments.algorithm is not None):
        parser.error(f"an algorithm must be named for {', '.join(BY_ALGORITHM)}, and only there")
    _, folders = STAGES[arguments.stage]
    for folder in folders:  # what DVC asks for must be there, if empty
        (ROOT / folder / (arguments.algorithm or "")).mkdir(parents=True, exist_ok=True)
    name = "@".join(filter(None, (arguments.stage, arguments.algorithm)))
    jobs = stage_jobs(plan).get(name, [])
    if all(plan.valid[job.name] for job in jobs):
        print(f"{len(jobs)} results are valid: nothing to do")
        return
    targets = [job.outputs["provenance"] for job in jobs]
    sys.exit(subprocess.run([sys.executable, "-m", "snakemake", *targets], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
