# The pipeline: `snakemake` makes the whole leaderboard of params/benchmark.yaml.
#   snakemake --config preset=cpu_real            another preset
#   snakemake --config algorithms='[patchcore]'   any key of benchmark.yaml
from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/algorithms.smk"
include: "workflow/rules/results.smk"


rule all:
    default_target: True
    input:
        everything,
