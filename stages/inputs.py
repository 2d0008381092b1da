"""Opens what an algorithm reads, features or images, and builds the algorithm on it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from algorithms.base import Algorithm, Context, Images, create, numbered
from stages.artifacts.features import FeatureReader
from stages.artifacts.files import StageError, images_in
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.batches import ImageReader, Reader, ReadImages, Subset, held_out

# Opens what is trained on and, for who calibrates, what is held out of it: of a job and threads.
Opening = Callable[[Job, int], AbstractContextManager[tuple[Reader, Reader | None]]]


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
    return image_reader(parameters, [root / path for path in table["path"]], threads)


def image_reader(
    parameters: Mapping[str, Any], paths: Sequence[Path], threads: int, normalised: bool = True
) -> ImageReader:
    """Read images as a job's parameters say; not normalised, pixels are in [0, 1]."""
    return ImageReader(
        paths,
        parameters["image_size"],
        parameters["crop"],
        parameters["interpolation"],
        parameters["mean"] if normalised else Context.mean,
        parameters["std"] if normalised else Context.std,
        threads,
    )


@contextmanager
def open_training(job: Job, threads: int) -> Iterator[tuple[Reader, Reader | None]]:
    """Open what is trained on and, for who calibrates, what is held out of it.

    A data set's own validation images are held out, where it has any.
    """
    with ExitStack() as stack:
        reader = open_reader(job, "train", threads)
        stack.enter_context(reader)
        share = job.parameters.get("validation")
        if share is None:
            yield reader, None
        elif len(usable(read_index(job.input("index")), "validation")):
            own = open_reader(job, "validation", threads)
            stack.enter_context(own)
            yield reader, own
        else:
            kept, held = held_out(len(reader), share)
            yield Subset(reader, kept), Subset(reader, held)


def training_images(folders: Sequence[str], indexes: Sequence[Path]) -> list[Path]:
    """List the training images of categories' folders, or all images of one without an index.

    Raises
    ------
    StageError
        If there is none.
    """
    if not indexes:
        paths = [path for folder in folders for path in images_in(Path(folder))]
    else:
        paths = [
            Path(folder) / path
            for folder, index in zip(folders, indexes, strict=True)
            for path in usable(read_index(index), "train")["path"]
        ]
    if not paths:
        raise StageError(f"no image in {', '.join(folders) or 'no folder'}")
    return paths


def load_teachers(paths: Sequence[Path]) -> dict[str, Tensor] | None:
    """Load what the stage ``teach`` left; keys of several teachers are numbered."""
    if not paths:
        return None
    return numbered([load_file(path / "model.safetensors") for path in paths])


def _outside(job: Job, threads: int, device: torch.device) -> Images | None:
    """Images that are not of the job's category, where it needs them."""
    folders = job.parameters.get("outside_folders")
    if folders is None:
        return None
    paths = training_images(folders, job.inputs.get("outside", []))
    return ReadImages(image_reader(job.parameters, paths, threads), device)


def _textures(job: Job, threads: int, device: torch.device) -> Images | None:
    """Texture photographs, where there is a folder of them."""
    folder = job.parameters.get("textures_folder")
    if folder is None:
        return None
    paths = training_images([folder], [])
    return ReadImages(image_reader(job.parameters, paths, threads, normalised=False), device)


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
    job: Job,
    shapes: tuple[tuple[int, ...], ...],
    n_train: int,
    device: torch.device,
    threads: int = 1,
) -> Algorithm:
    """Build a job's algorithm for inputs of these shapes, with all that it needs."""
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
        outside=_outside(job, threads, device),
        textures=_textures(job, threads, device),
    )
    if base := parameters.get("base"):
        teacher = load_teachers(job.inputs.get("base_teacher", []))
        below = replace(context, teacher=teacher, outside=None, textures=None)
        trained = create(base["algorithm"], base["parameters"], below)
        trained.load(job.input("base"))
        context = replace(context, base=trained)
    context = replace(context, teacher=load_teachers(job.inputs.get("teacher", [])))
    return create(parameters["algorithm"], parameters["parameters"], context)
