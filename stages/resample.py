"""Compute metrics on resamples of the test images: what intervals and differences are made from.

Of one (algorithm, category, seed) and its primary method, over all defect types, as the leaderboard
shows it. Which images are drawn depends on the category alone, so that all algorithms and seeds
meet the same ones. A metric whose replicates are those asked for is not computed again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

import visionad_metrics
from stages.artifacts.files import StageError
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.artifacts.maps import read_info, read_maps, read_scores
from stages.artifacts.resampled import (
    Replicates,
    ResampledRun,
    read_resampled,
    write_resampled,
)
from stages.command import Options, run
from stages.evaluate import read_truth, resize_maps
from visionad_metrics.bootstrap import draw, resample


def fingerprint(job: Job, metric: str) -> str:
    """Digest all that one metric's replicates depend on."""
    left_out = ("metrics", "root")
    common = {name: value for name, value in job.parameters.items() if name not in left_out}
    content = [
        job.parameters["metrics"][metric],
        common,
        dict(job.key),
        job.code,
        dict(job.versions),
        dict(job.upstream),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def kept(job: Job) -> dict[str, Replicates]:
    """Read the replicates that are what the job asks for."""
    path = job.outputs["resampled"]
    if job.forced or not path.is_file():
        return {}
    try:
        found = read_resampled(path).metrics
    except StageError:  # damaged: all are made anew
        return {}
    return {
        name: found[name]
        for name in job.parameters["metrics"]
        if name in found and found[name].fingerprint == fingerprint(job, name)
    }


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the replicates of the job's run."""
    parameters = job.parameters
    path = job.input("maps")
    info = read_info(path)
    table = usable(read_index(job.input("index")), "test").set_index("image_id", drop=False)
    if differing := set(info.ids) ^ set(table.index):
        raise StageError(
            f"{path}: its images are not those of the index, e.g. {sorted(differing)[0]}; "
            "run snakemake again"
        )
    table = table.loc[info.ids]
    labels = table["label"].to_numpy().astype(bool)
    found = kept(job)
    stale = {name: one for name, one in parameters["metrics"].items() if name not in found}
    weights = draw(
        info.ids, labels, parameters["resamples"], parameters["seed"], job.key["category"]
    )
    by_id = np.argsort(np.array(info.ids))
    samples: dict[str, visionad_metrics.Samples] = {}
    for name, metric in stale.items():
        level = visionad_metrics.level(metric["metric"])
        if level not in samples and level == "image":
            scores = read_scores(path, info.primary_score)
            samples[level] = visionad_metrics.Samples(scores=scores, labels=labels)
        elif level not in samples:
            category = Path(parameters["root"]) / job.key["category"]
            size = parameters["evaluation_size"]
            truth = read_truth(category, table, size, parameters["crop"])
            maps = resize_maps(read_maps(path, info.primary_map), size)
            samples[level] = visionad_metrics.Samples(maps, truth.masks)
        one = resample(samples[level], metric["metric"], metric["parameters"], weights)
        influence = one.influence[by_id] if one.influence.size else one.influence
        found[name] = Replicates(
            one.value, one.replicates, influence, one.reason, fingerprint(job, name)
        )
    good, defective = int(np.sum(~labels)), int(np.sum(labels))
    write_resampled(job.outputs["resampled"], ResampledRun(dict(job.key), good, defective, found))
    undefined = {name: one.reason for name, one in found.items() if not one.values.size}
    return {"computed": sorted(stale), "without_replicates": undefined}


if __name__ == "__main__":
    run("resample", __doc__, body)
