# What all rules share: the plan of this run, and inputs that translate its fingerprints.
import atexit
import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import validate

sys.path.insert(0, workflow.basedir)

from params.reading import ParamsError
from stages import warm
from workflow import plan as planning

config = planning.typed(config)

try:
    PLAN = planning.Plan(overrides=config)
except ParamsError as error:
    raise WorkflowError(str(error))

# One run at a time; dry runs, reports and lints may look on meanwhile. The jobs that a cluster
# starts read this file, too, and leave the plan to the process that sent them.
LOCK, LOCKED_OUT = None, None
if workflow.is_main_process:
    try:
        LOCK = planning.lock()
        # Snakemake's marks of what a killed run was at: stamps know that, and know what was finished.
        for mark in Path(".snakemake/incomplete").rglob("*"):
            if mark.is_file():
                mark.unlink()
    except ParamsError as error:
        LOCKED_OUT = str(error)


@functools.cache
def prepare():
    """Translate the plan for Snakemake, once it is known what Snakemake is to do.

    That is not known while it reads this file, but when it asks for the first job's inputs.
    """
    settings = workflow.dag_settings
    runs = workflow.executor_plugin is not None and not workflow.dryrun and not workflow.touch
    PLAN.force(lambda job: is_forced(job, settings))
    if LOCK is not None:
        if runs:
            PLAN.keep()
            try:
                back = PLAN.restore()
            except ParamsError as error:
                raise WorkflowError(str(error))
            if back:
                logger.info(f"Restored {len(back)} finished results from {planning.STORE}/.")
        PLAN.write()
        if runs:
            atexit.register(finish)
    elif LOCKED_OUT:  # `onstart` refuses to run; where there seems nothing to do, it is not asked
        logger.warning(LOCKED_OUT)
    kept = [job for job in PLAN.other_versions if not job.forced]
    if kept:
        logger.warning(planning.versions_warning(kept))
    if not runs and PLAN.restorable:
        logger.info(
            f"{len(PLAN.restorable)} results will come from {planning.STORE}/, without a job."
        )


def finish():
    """Keep the store under its cap, record and log results, at the end of any real run.

    Not in `onsuccess`, which a run with nothing to do never reaches: an edit may have changed what
    DVC compares, a comment say, and no result. DVC records by itself what it runs.
    """
    PLAN.collect()
    if RUN.pipeline.record and "DVC_STAGE" not in os.environ:
        subprocess.run([sys.executable, "-m", "workflow.record"], cwd=workflow.basedir)
    if RUN.logger.kind != "none":
        words = [f"{key}={json.dumps(value)}" for key, value in config.items()]
        command = [sys.executable, "-m", "workflow.track", "--config", *words]
        subprocess.run(command, cwd=workflow.basedir)


def is_forced(job, settings):
    """Tell whether --forceall, --forcerun (a rule or a file) or --force (targets) names a job."""
    if settings.forceall:
        return True
    named = set(settings.forcerun)
    if settings.forcetargets:
        named |= set(settings.targets or ["all"])
    return job.stage in named or not named.isdisjoint(job.outputs.values())


onstart:
    if LOCKED_OUT:
        raise WorkflowError(LOCKED_OUT)
    SOCKET.unlink(missing_ok=True)  # a killed run's: jobs would look for its server
    if workflow.local_exec:
        # Limits how many jobs are submitted a second, for clusters. Here every job that ends would
        # leave one more timer that has all that is ready looked at each second, to the run's end:
        # a quarter of a core after 330 jobs (snakemake/snakemake#3804).
        workflow.scheduler.job_rate_limiter = None
    saved = sum(SAVES.get(job.rule.name, 0) for job in workflow.dag.needrun_jobs())
    if WARM != STAGE and workflow.local_exec and saved / workflow.cores > SERVER_SECONDS:
        SERVER.append(warm.start(SOCKET))


validate(config, "../schemas/benchmark.schema.json", set_default=False)

RUN = PLAN.run.benchmark
# The interpreter that runs Snakemake has the packages that stages need. Stages that import torch
# are forked, on a CPU, from one process that has done so (stages/warm.py); without a server, which
# runs as long as this process, the same words start them one by one.
STAGE = shlex.join([sys.executable, "-m", "stages"])
SERVER, SOCKET = [], Path(planning.PLAN_FOLDER, "warm.sock")
WARM = STAGE
if workflow.is_main_process and RUN.pipeline.warm and warm.serves(RUN.device):
    WARM = shlex.join([*warm.command(SOCKET), "stages"])
# Seconds that a server saves a job, on one core; it costs some itself.
SAVES = {
    "features": 3,
    "augment": 3,
    "teach": 3,
    "train": 3,
    "predict": 3,
    "learning": 3,
    "evaluate": 0.6,
    "resample": 0.6,
    "sheet": 0.6,
    "gallery": 0.6,
}
SERVER_SECONDS = 4
USES_GPU = int(RUN.device != "cpu")


NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]*"


wildcard_constraints:
    algorithm=NAME,
    backbone=NAME,
    teacher=NAME,
    dataset=NAME,
    category=NAME,
    seed=r"\d+",


def files(stage):
    """Input function: the files that a job reads, as far as Snakemake need know of them.

    Times play no part: the job's own file under .plan/ is new exactly when its fingerprint says
    that it must run. A valid job whose inputs are gone or broken has nothing to wait for: the
    `all` rule has them remade. It must not name them, since Snakemake forgets to look at jobs
    below an `ancient` file that is remade in the same run (its issue 4166).
    """

    def inputs(wildcards):
        prepare()
        job = job_of(stage, wildcards)
        paths = [path for group in job.inputs.values() for path in group]
        paths += [above.outputs["provenance"] for above in job.upstream]
        if PLAN.whole(job):
            return [ancient(path) for path in dict.fromkeys(paths)]
        if PLAN.valid[job.name]:
            return []
        paths += [one.outputs["provenance"] for one in job.waits_for]
        return [path for path in dict.fromkeys(paths) if path not in PLAN.absent]

    return inputs


def module(stage):
    """Function of wildcards: the module of `stages` that runs a job."""
    return lambda wildcards: job_of(stage, wildcards).module


def everything(wildcards):
    """Input function of `all`: what every job makes, but for what the store will bring back."""
    prepare()
    return [
        job.outputs["provenance"] for job in PLAN.jobs.values() if job.name not in PLAN.restorable
    ]


def job_of(stage, wildcards):
    fields = dict(wildcards.items())
    if "seed" in fields:
        fields["seed"] = f"seed{fields['seed']}"
    try:
        return PLAN.job(stage, fields)
    except ParamsError as error:
        raise WorkflowError(str(error))
