"""Opens what an algorithm reads, features or images, and builds the algorithm on it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import nn

from algorithms.base import Algorithm, Context, create
from stages.artifacts.features import FeatureReader
from stages.artifacts.files import StageError
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.batches import ImageReader


class EnsembleReader(AbstractContextManager["EnsembleReader"]):
    """Reads the features of several backbones as if they were layers of one."""

    def __init__(self, paths: list[Path], split: str, layers: list[str]) -> None:
        share = 0.25 / len(paths)
        with ExitStack() as stack:
            self.members = [
                stack.enter_context(FeatureReader(path, split, layers, share)) for path in paths
            ]
            self.ids = self.members[0].ids
            for path, member in zip(paths, self.members, strict=True):
                if member.ids != self.ids:
                    raise StageError(f"{path}: its images are not those of {paths[0]}")
            self._context = stack.pop_all()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(C, H, W) of each layer of each backbone."""
        return tuple(shape for member in self.members for shape in member.shapes)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the images ``rows`` (B,), in that order, as float32 [(B, C, H, W)]."""
        return [array for member in self.members for array in member.read(rows)]

    def __exit__(self, *error: object) -> None:
        self._context.close()


def open_reader(job: Job, split: str, threads: int) -> FeatureReader | EnsembleReader | ImageReader:
    """Open the training or test images of a job; close it by using it as a context manager."""
    parameters = job.parameters
    if "features" in job.inputs:
        paths = job.inputs["features"]
        if len(paths) > 1:
            return EnsembleReader(list(paths), split, parameters["layers"])
        return FeatureReader(paths[0], split, parameters["layers"])
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


def backbone_maker(job: Job, device: torch.device) -> Callable[..., nn.Module] | None:
    """What makes the network that a job's algorithm builds on, where it does."""
    parameters = job.parameters
    if "backbone" not in parameters:
        return None
    # By name: code that most algorithms never run must not count as theirs (workflow/jobs.py).
    network = importlib.import_module("stages.backbone").network

    def make(*layers: int) -> nn.Module:
        names = [parameters["layers"][layer] for layer in layers] or parameters["layers"]
        return network(parameters["backbone"], names).to(device)

    return make


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
        members=len(job.inputs.get("features", ())) or 1,
        mean=tuple(parameters.get("mean", Context.mean)),
        std=tuple(parameters.get("std", Context.std)),
        backbone=backbone_maker(job, device),
    )
    return create(parameters["algorithm"], parameters["parameters"], context)
