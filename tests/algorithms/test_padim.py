"""PaDiM against a covariance per position, built and inverted in full."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from algorithms.base import Context
from algorithms.padim import Hyperparameters, Padim, nearest_index

GRID = 16
EXACT = {"sigma": 1e-6}  # with maps as large as the grid: the distances themselves


def mahalanobis(
    train: list[np.ndarray], test: list[np.ndarray], channels: np.ndarray, eps: float
) -> np.ndarray:
    """Distances (B, GRID, GRID), from the definition, in float64."""

    def stack(layers: list[np.ndarray]) -> np.ndarray:
        fine = [
            np.repeat(np.repeat(x, GRID // x.shape[2], axis=2), GRID // x.shape[3], axis=3)
            for x in layers
        ]
        return np.concatenate(fine, axis=1)[:, channels].astype(np.float64)

    normal, centred = stack(train), stack(test)
    centred -= normal.mean(axis=0)
    result = np.empty((len(centred), GRID, GRID))
    for row, column in np.ndindex(GRID, GRID):
        covariance = np.cov(normal[..., row, column], rowvar=False) + eps * np.eye(len(channels))
        delta = centred[..., row, column]
        squared = np.einsum("bc,cd,bd->b", delta, np.linalg.inv(covariance), delta)
        result[:, row, column] = np.sqrt(squared)
    return result


def kept_channels(algorithm: Padim) -> np.ndarray:
    """The subset as channels of all layers stacked."""
    widths = [shape[0] for shape in algorithm.context.shapes]
    starts = np.cumsum([0, *widths[:-1]])
    return np.concatenate(
        [start + kept.numpy() for start, kept in zip(starts, algorithm.channels, strict=True)]
    )


@pytest.mark.parametrize(
    ("features", "block_bytes"),
    [
        (8, 10**8),  # primal, one block
        (8, 20_000),  # primal, many
        (30, 10**8),  # dual, factors kept
        (30, 20_000),  # dual, factors made again for each batch
        (12, 10**8),  # as many features as the covariance has rank
        (13, 10**8),  # the last dual
    ],
)
def test_distances(
    feature_toy: Any, fit: Any, predict: Any, features: int, block_bytes: int
) -> None:
    parameters = {"max_features": features, "block_bytes": block_bytes, **EXACT}
    algorithm = fit("padim", parameters, feature_toy.train, size=GRID).algorithm
    assert algorithm._dual == (len(feature_toy.train) <= features)
    channels = kept_channels(algorithm)
    assert len(set(channels)) == features
    expected = mahalanobis(feature_toy.train.arrays, feature_toy.test.arrays, channels, eps=0.01)
    prediction = predict(algorithm, feature_toy.test)
    np.testing.assert_allclose(prediction.maps["mahalanobis"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        prediction.scores["mahalanobis"], expected.max(axis=(1, 2)), rtol=1e-4
    )


@pytest.mark.parametrize("images", [9, 10, 11, 12])
def test_both_forms_agree(
    feature_toy: Any, fit: Any, predict: Any, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    maps = []
    for dual in (True, False):
        monkeypatch.setattr(Padim, "_dual", dual)
        parameters = {"max_features": 10, **EXACT}
        algorithm = fit("padim", parameters, feature_toy.train.take(images), size=GRID).algorithm
        assert bool(algorithm.factors) is dual
        maps.append(predict(algorithm, feature_toy.test).maps["mahalanobis"])
    torch.testing.assert_close(*maps, rtol=1e-4, atol=0)


def test_map_and_score(feature_toy: Any, fit: Any, predict: Any) -> None:
    parameters = {"max_features": 30}
    coarse = fit("padim", parameters | EXACT, feature_toy.train, size=GRID).algorithm
    fine = fit("padim", parameters, feature_toy.train).algorithm
    distances = predict(coarse, feature_toy.test).maps["mahalanobis"]
    large = functional.interpolate(distances[:, None], (64, 64), mode="bilinear")[:, 0]
    expected = np.stack([gaussian_filter(image, 4.0) for image in large.double().numpy()])
    prediction = predict(fine, feature_toy.test)
    np.testing.assert_allclose(prediction.maps["mahalanobis"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        prediction.scores["mahalanobis"], expected.max(axis=(1, 2)), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        ((16, 16), (4, 4)),
        ((16, 12), (8, 3)),
        ((7, 7), (7, 7)),
        ((7, 5), (3, 2)),
        ((56, 33), (19, 17)),
    ],
)
def test_nearest_index(fine: tuple[int, int], coarse: tuple[int, int]) -> None:
    cells = np.arange(coarse[0] * coarse[1]).reshape(coarse)
    # Row r of H lies in row floor(r h / H) of h: in exact integers, each row is repeated as often
    # as it is hit, which is H / h times where that is whole.
    for axis in (0, 1):
        hits = [index * coarse[axis] // fine[axis] for index in range(fine[axis])]
        cells = np.repeat(cells, np.bincount(hits, minlength=coarse[axis]), axis=axis)
    np.testing.assert_array_equal(nearest_index(fine, coarse), cells.flatten())
    values = torch.arange(coarse[0] * coarse[1], dtype=torch.float32).reshape(1, 1, *coarse)
    upsampled = functional.interpolate(values, fine, mode="nearest")
    torch.testing.assert_close(nearest_index(fine, coarse).float(), upsampled.flatten())


def context(seed: int, n_train: int = 50, scale: int = 1) -> Context:
    shapes = ((64, 8 * scale, 8 * scale), (128, 4 * scale, 4 * scale), (256, 2 * scale, 2 * scale))
    return Context((32 * scale, 32 * scale), shapes, n_train, seed, torch.device("cpu"))


def test_one_channel_subset_per_seed() -> None:
    bottle = Padim(Hyperparameters(100), context(seed=3))
    torch.manual_seed(12345)  # the subset must not depend on what was drawn before
    screw = Padim(Hyperparameters(100), context(seed=3, n_train=320, scale=2))
    other = Padim(Hyperparameters(100), context(seed=4))
    assert len(set(kept_channels(bottle))) == 100
    np.testing.assert_array_equal(kept_channels(bottle), kept_channels(screw))
    assert set(kept_channels(bottle)) != set(kept_channels(other))


def test_all_channels_where_there_are_fewer() -> None:
    algorithm = Padim(Hyperparameters(), context(seed=0))
    np.testing.assert_array_equal(kept_channels(algorithm), np.arange(448))


def test_loaded_model_brings_its_channels(feature_toy: Any, fit: Any, build: Any) -> None:
    fitted = fit("padim", {"max_features": 30}, feature_toy.train)
    fresh = build("padim", {"max_features": 30}, feature_toy.train, seed=1)
    assert set(kept_channels(fresh)) != set(kept_channels(fitted.algorithm))
    fresh.load(fitted.folder)
    np.testing.assert_array_equal(kept_channels(fresh), kept_channels(fitted.algorithm))


def test_layer_without_a_kept_channel(feature_toy: Any, fit: Any, predict: Any) -> None:
    fitted = fit("padim", {"max_features": 1, **EXACT}, feature_toy.train, size=GRID)
    assert sorted(len(kept) for kept in fitted.algorithm.channels) == [0, 0, 1]
    # One channel, so that the covariance is a number.
    layer = next(i for i, kept in enumerate(fitted.algorithm.channels) if len(kept))
    channel = int(fitted.algorithm.channels[layer][0])
    train, test = (part.arrays[layer][:, channel] for part in (feature_toy.train, feature_toy.test))
    z = np.abs(test - train.mean(axis=0)) / np.sqrt(train.var(axis=0, ddof=1) + 0.01)
    factor = GRID // z.shape[1]
    expected = np.repeat(np.repeat(z, factor, axis=1), factor, axis=2)
    maps = predict(fitted.algorithm, feature_toy.test).maps["mahalanobis"]
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5)


def test_one_training_image_is_refused(feature_toy: Any, fit: Any) -> None:
    with pytest.raises(ValueError, match="at least two"):
        fit("padim", {}, feature_toy.train.take(1))


FULL_SIZE = """
import numpy as np
import torch
from algorithms.base import Context
from algorithms.padim import Hyperparameters, Padim
from stages.artifacts.provenance import peak_memory

torch.set_num_threads(1)
shapes = ((256, 64, 64), (512, 32, 32), (1024, 16, 16))

class Loader:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return self.images // 4

    def __iter__(self):
        rng = np.random.default_rng(0)
        for _ in range(len(self)):
            yield [torch.from_numpy(rng.random((4, *s), dtype=np.float32)) for s in shapes]

algorithm = Padim(Hyperparameters(), Context((256, 256), shapes, 100, 0, torch.device("cpu")))
assert sum(len(kept) for kept in algorithm.channels) == 550
algorithm.train_one_epoch(Loader(100))
algorithm.before_eval(Loader(100))
with torch.inference_mode():
    maps = algorithm.predict([layer[:2] for layer in next(iter(Loader(4)))]).maps["mahalanobis"]
assert maps.shape == (2, 256, 256)
assert maps.isfinite().all()
print(peak_memory())
"""


@pytest.mark.slow
def test_memory_at_full_size() -> None:
    # 4096 covariances of 550 x 550 would be 5 GB in float32; torch itself takes 0.5.
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_SIZE)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) < 2e9
