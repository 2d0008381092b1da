"""Small synthetic data on which every algorithm trains in about a second, and the way to train it.

Normal images share a smooth template per layer and differ by noise, so that there is something to
learn: the template varies more from place to place than a planted defect does, and only who knows
the template can tell the two apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import algorithms.base
from algorithms.base import Algorithm, Context, Prediction, create, create_teacher, numbered
from params.hyperparameters import Declaration, declaration
from stages.backbone import network
from stages.batches import BatchLoader, Reader, Subset, held_out
from stages.devices import prepare, seed_everything
from stages.trainer import Checkpoint, Progress, train

SIZE = 64
SHAPES = ((12, 16, 16), (20, 8, 8), (28, 4, 4))  # strides 4, 8 and 16, as of the backbones
TEMPLATE, NOISE, SHIFT = 0.8, 0.2, 1.2  # the defect is six sigma, on every layer
# What an algorithm builds on that starts from a backbone: timm's smallest ResNet, random weights.
NETWORK = {
    "model": "test_resnet",
    "weights": {"source": "random", "seed": 0, "keys": "timm"},
    "layers": {"stride2": 0, "stride4": 1, "stride8": 2, "stride16": 3},
    "padding": "zeros",
    "reduction": 1,
    "scale": 1,
}
DEFECT = (0.25, 0.5)  # of a side, in both directions; whole cells of the coarsest layer
# What algorithms need in miniature: kinds and hyperparameters of teachers, untrained; and the
# algorithm that another builds upon.
TEACHERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "student_teacher": [
        ("patch_network", {"receptive_field": 17, "width": 1 / 16, "dimensions": count})
        for count in (8, 6)
    ],
    "efficientad": [("pdn", {"width": 0.125, "pretrain_dimension": None})],
    "dsr": [
        (
            "discrete",
            {"hidden": 16, "residual_hidden": 8, "residual_layers": 1}
            | {"dimensions": 8, "codes": 64},
        )
    ],
}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "puad": (
        "efficientad",
        {"steps_per_epoch": 40, "learning_rate": 1e-3, "autoencoder_width": 0.25},
    ),
}
MEMBERS = {"pfm": 2}  # backbones whose features it reads, if not one
HELD_OUT = 0.25


class MemoryReader:
    """Arrays (N, C, H, W) of one split, as stages read them from disk."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0])

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape[1:] for array in self.arrays)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        return [array[rows] for array in self.arrays]

    def take(self, count: int) -> MemoryReader:
        """Return the first ``count`` images."""
        return MemoryReader([array[:count] for array in self.arrays])


@dataclass(frozen=True)
class Toy:
    """A category: training images, test images, and the same with a planted defect."""

    train: MemoryReader
    clean: MemoryReader
    defective: MemoryReader
    mask: np.ndarray  # (size, size) bool, of the defect

    @property
    def test(self) -> MemoryReader:
        """Clean images, then their defective twins."""
        pairs = zip(self.clean.arrays, self.defective.arrays, strict=True)
        return MemoryReader([np.concatenate(pair) for pair in pairs])


def _toy(
    shapes: tuple[tuple[int, int, int], ...], size: int = SIZE, n_train: int = 13, n_test: int = 4
) -> Toy:
    rng = np.random.default_rng(7)
    splits: dict[str, list[np.ndarray]] = {"train": [], "clean": [], "defective": []}
    for channels, height, width in shapes:
        smooth = gaussian_filter(rng.normal(size=(channels, height, width)), (0, 1, 1), mode="wrap")
        # Shifted upwards because features come out of a ReLU: the student must be able to draw them
        template = 1.5 + TEMPLATE * smooth / smooth.std()
        images = template + rng.normal(0, NOISE, (n_train + n_test, channels, height, width))
        planted = images[n_train:].copy()
        cells = slice(*(int(share * height) for share in DEFECT))
        direction = rng.choice([-1.0, 1.0], size=(channels, 1, 1))
        planted[:, :, cells, cells] += SHIFT * direction
        for name, array in (
            ("train", images[:n_train]),
            ("clean", images[n_train:]),
            ("defective", planted),
        ):
            splits[name].append(array.astype(np.float32))
    mask = np.zeros((size, size), bool)
    cells = slice(*(int(share * size) for share in DEFECT))
    mask[cells, cells] = True
    return Toy(**{name: MemoryReader(arrays) for name, arrays in splits.items()}, mask=mask)


@dataclass(frozen=True)
class Fitted:
    """What a training left."""

    algorithm: Algorithm
    progress: Progress
    folder: Path  # holds model.safetensors

    @property
    def model(self) -> bytes:
        """The saved model."""
        return (self.folder / "model.safetensors").read_bytes()

    def same_model(self, other: Fitted) -> bool:
        """Compare bytes where pytest does not see it: it would explain them, for many minutes."""
        return self.model == other.model


class Fit(Protocol):
    """Train an algorithm as ``stages.train`` does."""

    def __call__(
        self,
        name: str,
        parameters: Mapping[str, Any],
        reader: Reader,
        *,
        seed: int = 0,
        epochs: int = 1,
        batch: int = 4,
        train_seconds: float | None = None,
        folder: Path | None = None,
        size: int | None = None,
    ) -> Fitted: ...


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    """One thread and deterministic kernels, as in a stage's process."""
    prepare("cpu", 1)


@pytest.fixture(scope="session")
def feature_toys() -> Callable[[int], Toy]:
    """Return the function that makes features of three layers of so many backbones."""
    return cache(lambda members: _toy(SHAPES * members))


@pytest.fixture(scope="session")
def feature_toy(feature_toys: Callable[[int], Toy]) -> Toy:
    """Features of three layers."""
    return feature_toys(1)


@pytest.fixture(scope="session")
def image_toys() -> Callable[[int], Toy]:
    """Return the function that makes normalised images of a size."""
    return cache(lambda size: _toy(((3, size, size),), size))


@pytest.fixture(scope="session")
def image_toy(image_toys: Callable[[int], Toy]) -> Toy:
    """Normalised images."""
    return image_toys(SIZE)


@pytest.fixture(scope="session")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Return the function that trains; with ``folder``, it resumes what it finds there."""

    def run(
        name: str,
        parameters: Mapping[str, Any],
        reader: Reader,
        *,
        seed: int = 0,
        epochs: int = 1,
        batch: int = 4,
        train_seconds: float | None = None,
        folder: Path | None = None,
        size: int | None = None,
    ) -> Fitted:
        folder = folder or tmp_path_factory.mktemp(name)
        held = None
        if "validation" in declared(name).needs:
            kept, calibrating = held_out(len(reader), HELD_OUT)
            held, reader = Subset(reader, calibrating), Subset(reader, kept)
        seed_everything(seed, 0)
        algorithm = build(name, parameters, reader, seed=seed, size=size)
        training = {
            "epochs": epochs,
            "batch_size": batch,
            "seed": seed,
            "train_seconds": train_seconds,
        }
        checkpoint = Checkpoint(folder / "checkpoint", "a fingerprint")
        progress = train(algorithm, reader, training, checkpoint, False, held)
        algorithm.save(folder)
        return Fitted(algorithm, progress, folder)

    return run


def toy_network(*layers: int) -> torch.nn.Module:
    """Make the network that ``stages.inputs`` would make, in miniature."""
    names = ("stride2", "stride4", "stride8")
    return network(NETWORK, [names[layer] for layer in layers or range(len(names))])


def declared(name: str) -> Declaration:
    """What an algorithm's file declares."""
    return declaration(Path(algorithms.base.__file__).with_name(f"{name}.py"))


class OutsideImages:
    """Other images than the toy's: of noise."""

    def __init__(self, size: int) -> None:
        noise = np.random.default_rng(11).normal(size=(5, 3, size, size))
        self.images = torch.from_numpy(noise.astype(np.float32))

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int]) -> torch.Tensor:
        return self.images[list(rows)]


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Draw from seeded generators, and leave the global ones as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed_everything(seed, 0)
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@cache
def teachers(name: str, size: int) -> dict[str, torch.Tensor]:
    """The teachers that an algorithm needs, numbered if there are several; they learned nothing."""
    states = []
    shape, images = (3, size, size), OutsideImages(size).images.numpy()
    context = Context((size, size), (shape,), 5, 0, torch.device("cpu"), backbone=toy_network)
    for kind, parameters in TEACHERS[name]:
        with own_randomness(5):
            teacher = create_teacher(kind, parameters, context)
            teacher.prepare(BatchLoader(MemoryReader([images]), np.arange(5), 2, context.device))
        states.append({key: value.clone() for key, value in teacher.state().items()})
    return numbered(states)


@cache
def trained_base(name: str, size: int) -> Algorithm:
    """What an algorithm builds upon, trained for an epoch on the toy's images."""
    reader = _toy(((3, size, size),), size).train
    with own_randomness(6):
        base = build(*BASES[name], reader)
        loader = BatchLoader(reader, np.arange(len(reader)), 4, base.context.device)
        base.train_one_epoch(loader)
        base.before_eval(loader)
        base.calibrate(loader)
    return base


def build(
    name: str,
    parameters: Mapping[str, Any],
    reader: Reader,
    *,
    seed: int = 0,
    size: int | None = None,
) -> Algorithm:
    """Build an algorithm for a reader's shapes, untrained, with all that it needs."""
    shapes = tuple((c, h, w) for c, h, w in reader.shapes)
    wants = declared(name)
    if size is None:
        size = shapes[0][1] if wants.inputs == "images" else SIZE
    context = Context((size, size), shapes, len(reader), seed, torch.device("cpu"))
    context = replace(context, members=MEMBERS.get(name, 1))
    if wants.builds_on_backbone:
        context = replace(context, backbone=toy_network)
    if "teacher" in wants.needs:
        context = replace(context, teacher=teachers(name, size))
    if "outside" in wants.needs:
        context = replace(context, outside=OutsideImages(size))
    if "base" in wants.needs:
        context = replace(context, base=trained_base(name, size))
    return create(name, parameters, context)


@pytest.fixture(scope="session", name="build")
def _build() -> Any:
    return build


def predict(algorithm: Algorithm, reader: Reader, batch: int = 8) -> Prediction:
    """Predict all images of a reader, as ``stages.predict`` does."""
    order = np.arange(len(reader))
    loader: Iterator[list[torch.Tensor]] = iter(
        BatchLoader(reader, order, batch, algorithm.context.device)
    )
    with torch.inference_mode():
        parts = [algorithm.predict(tensors) for tensors in loader]
    return Prediction(
        {name: torch.cat([part.maps[name] for part in parts]) for name in parts[0].maps},
        {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores},
    )


@pytest.fixture(scope="session", name="predict")
def _predict() -> Any:
    return predict


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
