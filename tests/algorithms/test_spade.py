"""SPADE against brute force: all distances by subtraction, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from algorithms.base import Context, create

SIZE = 64
TRAIN, TEST = 6, 4


@pytest.fixture(scope="module")
def toy(feature_toy: Any) -> tuple[Any, Any]:
    """A few normal images, and clean and defective test images in turn."""
    return feature_toy.train.take(TRAIN), feature_toy.test.take(TEST)


def enlarge(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (N, C, h, w) bilinearly to (N, C, side, side)."""
    large = functional.interpolate(torch.from_numpy(maps), (side, side), mode="bilinear")
    return np.asarray(large.numpy())


def stored(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The pyramid as the gallery keeps it: in half precision."""
    return [array.astype(np.float16).astype(np.float64) for array in arrays[:-1]]


def vectors(maps: np.ndarray) -> np.ndarray:
    """Position by position: (N, h * w, C)."""
    return maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1)


def most_similar(train: Any, test: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N, K) and numbers of the training images nearest in the last layer's mean."""
    left, right = (
        reader.arrays[-1].astype(np.float64).mean(axis=(2, 3)) for reader in (test, train)
    )
    distances = np.linalg.norm(left[:, None] - right[None], axis=2)
    order = distances.argsort(axis=1)[:, :count]
    return np.take_along_axis(distances, order, axis=1), order


def level_distances(tested: np.ndarray, normal: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Distance of each position of (N, C, h, w) to the nearest of its image's normal ones."""
    maps = []
    for features, images in zip(vectors(tested), order, strict=True):
        gallery = vectors(normal[images]).reshape(-1, normal.shape[1])
        every = np.linalg.norm(features[:, None] - gallery[None], axis=2)
        maps.append(every.min(axis=1).reshape(tested.shape[2:]))
    return np.stack(maps)


@pytest.mark.parametrize("neighbours", [1, 3, 50])  # 50: more than there are images
def test_pooled_score(toy: Any, fit: Any, predict: Any, neighbours: int) -> None:
    train, test = toy
    expected = most_similar(train, test, neighbours)[0].mean(axis=1)
    prediction = predict(fit("spade", {"neighbours": neighbours}, train).algorithm, test)
    np.testing.assert_allclose(prediction.scores["pooled"], expected, rtol=1e-5)


@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_map(toy: Any, fit: Any, predict: Any, neighbours: int) -> None:
    train, test = toy
    order = most_similar(train, test, neighbours)[1]
    expected = np.zeros((TEST, SIZE, SIZE))
    for tested, normal in zip(test.arrays[:-1], stored(train.arrays), strict=True):
        distances = level_distances(tested.astype(np.float64), normal, order)
        expected += enlarge(distances[:, None], SIZE)[:, 0] / 2  # two layers
    smooth = np.stack([gaussian_filter(image, 2.0) for image in expected])
    parameters = {"neighbours": neighbours, "sigma": 2.0}
    prediction = predict(fit("spade", parameters, train).algorithm, test)
    np.testing.assert_allclose(prediction.maps["pyramid"], smooth, rtol=1e-4)
    np.testing.assert_allclose(prediction.scores["maximum"], smooth.max(axis=(1, 2)), rtol=1e-4)


def test_map_of_concatenated_layers(toy: Any, fit: Any, predict: Any) -> None:
    train, test = toy
    order = most_similar(train, test, 2)[1]
    side = test.arrays[0].shape[-1]
    tested, normal = (
        np.concatenate([enlarge(layer, side) for layer in layers], axis=1)
        for layers in ([a.astype(np.float64) for a in test.arrays[:-1]], stored(train.arrays))
    )
    expected = enlarge(level_distances(tested, normal, order)[:, None], SIZE)[:, 0]
    smooth = np.stack([gaussian_filter(image, 4.0) for image in expected])
    parameters = {"neighbours": 2, "concatenate_layers": True}
    prediction = predict(fit("spade", parameters, train).algorithm, test)
    np.testing.assert_allclose(prediction.maps["pyramid"], smooth, rtol=1e-4)


def test_training_images_are_at_distance_zero(toy: Any, fit: Any, predict: Any) -> None:
    train, _ = toy
    prediction = predict(fit("spade", {"neighbours": 1}, train).algorithm, train)
    np.testing.assert_allclose(prediction.scores["pooled"], 0, atol=1e-6)
    # Half precision, and the rounding of squares of length 50.
    assert float(prediction.maps["pyramid"].max()) < 0.02


def test_gallery_is_in_half_precision(toy: Any, fit: Any) -> None:
    train, _ = toy
    state = fit("spade", {}, train, batch=4).algorithm.state()
    assert set(state) == {"vectors", "layer0", "layer1"}
    np.testing.assert_array_equal(state["layer0"], train.arrays[0].astype(np.float16))
    np.testing.assert_array_equal(state["layer1"], train.arrays[1].astype(np.float16))
    np.testing.assert_allclose(state["vectors"], train.arrays[2].mean(axis=(2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "members"), [(((4, 2, 2),), 1), (((4, 4, 4), (4, 2, 2)) * 2, 2)]
)
def test_wants_a_pyramid_of_one_backbone(shapes: Any, members: int) -> None:
    context = Context((8, 8), shapes, 3, 0, torch.device("cpu"), members)
    with pytest.raises(ValueError, match="SPADE wants"):
        create("spade", {}, context)
