"""What the workers of both sides share, so that the same thing is timed: needs torch alone.

A worker is called with a job as JSON and answers with a line of JSON, its last one.
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Job = dict[str, Any]
Result = dict[str, Any]
# Chooses rows (N, D): how many, and after a projection to how many dimensions (ours alone is told).
Choose = Callable[[Tensor, int, int | None], Tensor]

BATCHES = {1: 8, 8: 3}  # images predicted at a time -> how often, after once to warm up
# Of torch, C++ and oneDNN.
NO_MEMORY = ("can't allocate memory", "bad_alloc", "could not create a memory object")


class AbsentError(Exception):
    """This side has no such algorithm; the text says why."""


class Method(ABC):
    """One side's algorithm on its backbone."""

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's maps (N, C, h, w), finest first."""

    @abstractmethod
    def fit(self, batches: Sequence[Tensor]) -> None:
        """Learn all from one pass over the images, backbone included; then be ready to predict."""

    @abstractmethod
    def train(self, batches: Sequence[Tensor]) -> int:
        """Train on batches of images, backbone included; return the number of batches used."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Return the anomaly maps of images, backbone included."""

    @abstractmethod
    def ready(self) -> None:
        """Prepare for prediction after training."""

    def backbone_seconds(self) -> float | None:
        """Seconds of the backbone in :meth:`fit` and :meth:`train` so far, where it is known."""
        return None


def peak() -> float:
    """Most memory that this process ever held, in GB, without what its parent held before it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def measure(method: Method, images: Tensor, job: Job) -> Result:
    """Fit and predict once.

    Returns
    -------
    Result
        ``fit``: seconds, of all or of a step; ``cached``: the same without the backbone, where it
        is known; ``1``, ``8``: milliseconds per image; ``peak``: GB; ``imports``: GB before
        anything was made; ``features``: a number that tells whether both sides see the same.
    """
    result: Result = {"imports": job["imports"]}
    with torch.no_grad():  # warms the backbone up, too
        maps = method.features(images[:1])
    result["features"] = float(sum(layer.double().mean() for layer in maps))
    batches = [part for part in images.split(job["batch"]) if len(part) == job["batch"]]
    if job["steps"]:
        method.train(batches[:1])  # makes CFA's bank and the optimiser's moments
        sample = list(itertools.islice(itertools.cycle(batches), 1, 1 + job["steps"]))
    before = method.backbone_seconds()
    start = time.perf_counter()
    if job["steps"]:
        parts = method.train(sample)
    else:
        parts = 1
        method.fit(images.split(job["batch"]))
    seconds = time.perf_counter() - start
    result["fit"] = seconds / parts
    after = method.backbone_seconds()
    if before is not None and after is not None:
        result["cached"] = (seconds - (after - before)) / parts
    if job["steps"]:
        method.ready()
    with torch.inference_mode():
        for size, count in BATCHES.items():
            times = []
            for number in range(1 + count):
                batch = images.roll(-number * size, dims=0)[:size]
                start = time.perf_counter()
                found = method.predict(batch)
                times.append(time.perf_counter() - start)
                if found.shape[-2:] != images.shape[-2:] or not found.isfinite().all():
                    raise RuntimeError("no finite map of the image's size")
            result[str(size)] = 1000 * statistics.median(times[1:]) / len(batch)
    return result | {"peak": peak()}


def measure_coreset(choose: Choose, job: Job) -> Result:
    """Time the coreset alone; the rows chosen are written to a file beside the answer."""
    rows = torch.load(job["rows"])
    start = time.perf_counter()
    with torch.no_grad():
        chosen = choose(rows, int(len(rows) * job["ratio"]), job["dimensions"])
    seconds = time.perf_counter() - start
    torch.save(chosen, job["chosen"])
    return {"fit": seconds, "peak": peak(), "imports": job["imports"]}


def answer(make: Callable[[Job, Tensor], Method], choose: Choose, job: Job) -> Result:
    """Do a job within its memory, or say why not."""
    limit = int(job["limit"] * 1e9)
    # Anonymous memory, that is, without the libraries that are only mapped (2.5 GB of address
    # space): what is close to the resident memory that is reported.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    job = {**job, "imports": peak()}
    try:
        if job["algorithm"] == "coreset":
            return measure_coreset(choose, job)
        images = torch.load(job["images"])
        return measure(make(job, images), images, job)
    except AbsentError as reason:
        return {"skipped": str(reason)}
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY):
            return {"skipped": f"out of memory, limit {job['limit']:g} GB", "peak": peak()}
        raise


def main(make: Callable[[Job, Tensor], Method], choose: Choose) -> None:
    """Read the job from the command line, do it, print the answer."""
    print(json.dumps(answer(make, choose, json.loads(sys.argv[1]))))
