# What all rules share: the plan of this run, and inputs that translate its fingerprints.
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

sys.path.insert(0, workflow.basedir)

from params.reading import ParamsError
from workflow import plan as planning

config = planning.typed(config)

try:
    PLAN = planning.Plan(overrides=config)
except ParamsError as error:
    raise WorkflowError(str(error))

# One run at a time; dry runs, reports and lints may look on meanwhile.
try:
    LOCK, LOCKED_OUT = planning.lock(), None
    PLAN.write()
except ParamsError as error:
    LOCK, LOCKED_OUT = None, str(error)


onstart:
    if LOCKED_OUT:
        raise WorkflowError(LOCKED_OUT)


validate(config, "../schemas/benchmark.schema.json", set_default=False)

# The interpreter that runs Snakemake has the packages that stages need.
STAGE = f"{sys.executable} -m stages"
RUN = PLAN.run.benchmark
USES_GPU = int(RUN.device != "cpu")


NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]*"


wildcard_constraints:
    algorithm=NAME,
    backbone=NAME,
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
        job = job_of(stage, wildcards)
        paths = [path for group in job.inputs.values() for path in group]
        paths += [above.outputs["provenance"] for above in job.upstream]
        if PLAN.whole(job):
            return [ancient(path) for path in dict.fromkeys(paths)]
        if PLAN.valid[job.name]:
            return []
        return list(dict.fromkeys(paths + [job.outputs["provenance"] for job in job.waits_for]))

    return inputs


def job_of(stage, wildcards):
    fields = dict(wildcards.items())
    if "seed" in fields:
        fields["seed"] = f"seed{fields['seed']}"
    try:
        return PLAN.job(stage, fields)
    except ParamsError as error:
        raise WorkflowError(str(error))
