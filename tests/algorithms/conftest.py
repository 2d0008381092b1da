"""Small synthetic data on which every algorithm trains in about a second, and the way to train it.

Normal images share a smooth template per layer and differ by noise, so that there is something to
learn: the template varies more from place to place than a planted defect does, and only who knows
the template can tell the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import algorithms.base
from algorithms.base import Algorithm, Context, Prediction, create
from params.hyperparameters import declaration
from stages.backbone import network
from stages.batches import BatchLoader, Reader
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
DEFECT = slice(16, 32)  # pixels, in both directions; whole cells of the coarsest layer


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
    mask: np.ndarray  # (SIZE, SIZE) bool, of the defect

    @property
    def test(self) -> MemoryReader:
        """Clean images, then their defective twins."""
        pairs = zip(self.clean.arrays, self.defective.arrays, strict=True)
        return MemoryReader([np.concatenate(pair) for pair in pairs])


def _toy(shapes: tuple[tuple[int, int, int], ...], n_train: int = 13, n_test: int = 4) -> Toy:
    rng = np.random.default_rng(7)
    splits: dict[str, list[np.ndarray]] = {"train": [], "clean": [], "defective": []}
    for channels, height, width in shapes:
        smooth = gaussian_filter(rng.normal(size=(channels, height, width)), (0, 1, 1), mode="wrap")
        # Shifted upwards because features come out of a ReLU: the student must be able to draw them
        template = 1.5 + TEMPLATE * smooth / smooth.std()
        images = template + rng.normal(0, NOISE, (n_train + n_test, channels, height, width))
        planted = images[n_train:].copy()
        cells = slice(DEFECT.start * height // SIZE, DEFECT.stop * height // SIZE)
        direction = rng.choice([-1.0, 1.0], size=(channels, 1, 1))
        planted[:, :, cells, cells] += SHIFT * direction
        for name, array in (
            ("train", images[:n_train]),
            ("clean", images[n_train:]),
            ("defective", planted),
        ):
            splits[name].append(array.astype(np.float32))
    mask = np.zeros((SIZE, SIZE), bool)
    mask[DEFECT, DEFECT] = True
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
        size: int = SIZE,
    ) -> Fitted: ...


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    """One thread and deterministic kernels, as in a stage's process."""
    prepare("cpu", 1)


@pytest.fixture(scope="session")
def feature_toy() -> Toy:
    """Features of three layers."""
    return _toy(SHAPES)


@pytest.fixture(scope="session")
def image_toy() -> Toy:
    """Normalised images."""
    return _toy(((3, SIZE, SIZE),))


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
        size: int = SIZE,
    ) -> Fitted:
        folder = folder or tmp_path_factory.mktemp(name)
        seed_everything(seed, 0)
        algorithm = build(name, parameters, reader, seed=seed, size=size)
        training = {
            "epochs": epochs,
            "batch_size": batch,
            "seed": seed,
            "train_seconds": train_seconds,
        }
        checkpoint = Checkpoint(folder / "checkpoint", "a fingerprint")
        progress = train(algorithm, reader, training, checkpoint, progress_bar=False)
        algorithm.save(folder)
        return Fitted(algorithm, progress, folder)

    return run


def toy_network(*layers: int) -> torch.nn.Module:
    """Make the network that ``stages.inputs`` would make, in miniature."""
    names = ("stride2", "stride4", "stride8")
    return network(NETWORK, [names[layer] for layer in layers or range(len(names))])


def build(
    name: str, parameters: Mapping[str, Any], reader: Reader, *, seed: int = 0, size: int = SIZE
) -> Algorithm:
    """Build an algorithm for a reader's shapes, untrained."""
    shapes = tuple((c, h, w) for c, h, w in reader.shapes)
    context = Context((size, size), shapes, len(reader), seed, torch.device("cpu"))
    file = Path(algorithms.base.__file__).with_name(f"{name}.py")
    if declaration(file).builds_on_backbone:
        context = replace(context, backbone=toy_network)
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
