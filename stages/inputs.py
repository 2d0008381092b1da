"""Opens what an algorithm reads, features or images, and builds the algorithm on it."""

from __future__ import annotations

from pathlib import Path

import torch

from algorithms.base import Algorithm, Context, create
from stages.artifacts.features import FeatureReader
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.batches import ImageReader


def open_reader(job: Job, split: str, threads: int) -> FeatureReader | ImageReader:
    """Open the training or test images of a job; close it by using it as a context manager."""
    parameters = job.parameters
    if "features" in job.inputs:
        return FeatureReader(job.input("features"), split, parameters["layers"])
    table = usable(read_index(job.input("index")), split)
    root = Path(parameters["root"]) / job.key["category"]
    return ImageReader(
        [root / path for path in table["path"]],
        parameters["image_size"],
        parameters["crop"],
        parameters["interpolation"],
        parameters["mean"],
        parameters["std"],
        threads,
    )


def image_ids(job: Job, split: str) -> list[str]:
    """Return the ids of a split in the order of its reader."""
    return [str(name) for name in usable(read_index(job.input("index")), split)["image_id"]]


def create_algorithm(
    job: Job, shapes: tuple[tuple[int, ...], ...], n_train: int, device: torch.device
) -> Algorithm:
    """Build a job's algorithm for inputs of these shapes."""
    parameters = job.parameters
    size = (parameters["image_size"], parameters["image_size"])
    context = Context(
        image_size=size,
        shapes=tuple((c, h, w) for c, h, w in shapes),
        n_train=n_train,
        seed=parameters["seed"],
        device=device,
    )
    return create(parameters["algorithm"], parameters["parameters"], context)
