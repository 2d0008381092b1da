"""PNI against its definitions, and what position and neighbourhood are for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

from algorithms.blocks.patches import embed
from algorithms.blocks.windows import Windows, nearest_possible, position_histogram, window_places
from algorithms.pni import (
    PNI,
    Hyperparameters,
    classifier,
    repeat_inner,
)

GRID = (5, 7)
SMALL = {
    "pretrain_dimension": None,
    "target_dimension": None,
    "coreset_ratio": 0.05,
    "distribution_size": 40,
    "window": 3,
    "width": 32,
    "depth": 3,
    "window_batch": 512,
}


def cut(maps: np.ndarray, window: int, dropped: int) -> np.ndarray:
    """Windows (P, K, D) around all positions of maps (H, W, D), zeros outside, from a loop."""
    radius = window // 2
    padded = np.pad(maps, ((radius, radius), (radius, radius), (0, 0)))
    height, width, dimensions = maps.shape
    windows = [
        np.delete(
            padded[row : row + window, column : column + window].reshape(-1, dimensions), dropped, 0
        )
        for row in range(height)
        for column in range(width)
    ]
    return np.stack(windows)


@pytest.mark.parametrize(("window", "dropped"), [(3, 4), (3, 5), (9, 40), (1 + 2 * 7, 0)])
def test_windows(rng: np.random.Generator, window: int, dropped: int) -> None:
    images, positions, dimensions = 3, GRID[0] * GRID[1], 2
    maps = rng.normal(size=(images, *GRID, dimensions)).astype(np.float32)
    inner = torch.tensor([8, 9, 10, 15, 16, 34])  # of 35
    targets = torch.arange(images * len(inner)) + 100
    order = torch.from_numpy(rng.permutation(len(targets)))
    rows = np.concatenate([maps.reshape(-1, dimensions), np.zeros((1, dimensions), np.float32)])
    places = window_places(GRID, window, dropped)
    assert places.shape == (positions, window**2 - 1)
    batches = Windows(torch.from_numpy(rows), targets, places[inner], order, batch=17)
    expected = np.stack([cut(image, window, dropped) for image in maps])[:, inner]
    expected = expected.reshape(len(targets), -1)[order]
    windows, names = zip(*batches, strict=True)
    assert [len(part) for part in windows] == [9, 9], "18 in batches of 17: not 17 and 1"
    assert len(batches) == 2
    np.testing.assert_array_equal(torch.cat(windows), expected)
    torch.testing.assert_close(torch.cat(names), order + 100)


def test_what_the_window_leaves_out(feature_toy: Any, build: Any) -> None:
    """The centre; or, as in the authors' code, the neighbour to its right."""
    place = 8 * 16 + 8
    for right, missing in ((False, place), (True, place + 1)):
        algorithm = build("pni", SMALL | {"drop_right_neighbour": right}, feature_toy.train)
        around = {place + 16 * row + column for row in (-1, 0, 1) for column in (-1, 0, 1)}
        assert set(algorithm.places[place].tolist()) == around - {missing}


@pytest.mark.parametrize("window", [1, 3, 9])
def test_histogram(rng: np.random.Generator, window: int) -> None:
    size, places = 4, [9, 10, 11, 16, 17, 18, 23]
    members = rng.integers(0, size, (6, len(places)))
    expected = np.zeros((*GRID, size))
    for image in members:
        for place, member in zip(places, image, strict=True):
            row, column = divmod(place, GRID[1])
            for i in range(GRID[0]):
                for j in range(GRID[1]):
                    if max(abs(i - row), abs(j - column)) <= window // 2:
                        expected[i, j, member] += 1
    expected /= np.maximum(expected.sum(axis=2, keepdims=True), 1)
    result = position_histogram(torch.from_numpy(members), torch.tensor(places), GRID, size, window)
    np.testing.assert_allclose(result, expected.reshape(-1, size), rtol=1e-6)


def test_nearest_possible(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, bank = rng.normal(size=(23, 4)), rng.normal(size=(11, 4))
    possible = rng.random((2, 23, 11)) < 0.3
    possible[0, 5] = False
    distances = np.linalg.norm(patches[:, None] - bank[None], axis=2)
    expected = [
        [
            row[mask].min() if mask.any() else row.max()
            for row, mask in zip(distances, masks, strict=True)
        ]
        for masks in possible
    ]
    for block in (1, 50, 10**6):
        monkeypatch.setattr("algorithms.blocks.windows.BLOCK", block)
        result = nearest_possible(*(torch.from_numpy(x) for x in (patches, bank, possible)))
        np.testing.assert_allclose(result, expected, rtol=1e-9)


@pytest.mark.parametrize("border", [0, 1, 2])
def test_border_is_repeated(rng: np.random.Generator, border: int) -> None:
    maps = rng.normal(size=(3, *GRID))
    inner = maps[:, border : GRID[0] - border, border : GRID[1] - border]
    expected = np.pad(inner, ((0, 0), (border, border), (border, border)), mode="edge")
    np.testing.assert_array_equal(repeat_inner(torch.from_numpy(maps), border), expected)


def test_published_network() -> None:
    with torch.device("meta"):
        network = classifier(80 * 1024, 2048, Hyperparameters())
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    shapes = [(layer.in_features, layer.out_features) for layer in linear]
    assert shapes == [(81_920, 2048)] + [(2048, 2048)] * 9
    assert [type(layer).__name__ for layer in network] == [
        *["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 9,
        "Linear",
    ]
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert weights == 81_921 * 2048 + 9 * 2049 * 2048 + 9 * 2 * 2048  # 205.6 million


@pytest.fixture(scope="module")
def fitted(feature_toy: Any, fit: Any) -> PNI:
    # A hotter softmax would call every member possible after so little training.
    parameters = SMALL | {"dropout": 0.1, "window_batch": 64, "temperature": 0.3}
    algorithm: PNI = fit("pni", parameters, feature_toy.train, epochs=3).algorithm
    return algorithm


def patches_of(algorithm: PNI, arrays: list[np.ndarray]) -> np.ndarray:
    """Embedded patches (N, P, D)."""
    return embed([torch.from_numpy(array) for array in arrays], algorithm.kernels).numpy()


def test_coresets_and_targets(fitted: PNI, feature_toy: Any) -> None:
    patches = patches_of(fitted, feature_toy.train.arrays)
    inner = patches.reshape(-1, 16, 16, 60)[:, 2:14, 2:14].reshape(-1, 60)
    bank, everywhere = fitted.fitted["inner_bank"].numpy(), fitted.fitted["full_bank"].numpy()
    assert len(bank) == int(0.05 * 13 * 12 * 12)
    assert len(everywhere) == int(0.05 * 13 * 16 * 16)
    rows = {row.tobytes() for row in inner}
    assert {row.tobytes() for row in bank} < rows
    assert not {row.tobytes() for row in everywhere} <= rows
    distribution = bank[:40]  # the first of them
    for points, nearest in ((inner, fitted.targets), (bank, fitted.fitted["parents"])):
        distances = ((points[:, None] - distribution[None]) ** 2).sum(axis=2)
        np.testing.assert_array_equal(nearest, distances.argmin(axis=1))
    assert fitted.fitted["parents"][:40].tolist() == list(range(40))


def test_distribution_is_part_of_the_coreset(feature_toy: Any, build: Any) -> None:
    algorithm = build("pni", SMALL | {"distribution_size": 10_000}, feature_toy.train)
    assert algorithm.classes == int(0.05 * 13 * 12 * 12)


def test_maps_by_definition(fitted: PNI, feature_toy: Any, predict: Any) -> None:
    test = feature_toy.test.take(6)
    prediction = predict(fitted, test)
    state = {name: value.numpy() for name, value in fitted.state().items()}
    fitted.best.eval()
    grids: dict[str, list[np.ndarray]] = {"combined": [], "neighbourhood": [], "position": []}
    excluded = 0
    for patches in patches_of(fitted, test.arrays):
        windows = torch.from_numpy(cut(patches.reshape(16, 16, 60), 3, 4)).flatten(1)
        with torch.inference_mode():
            logits = fitted.best(windows).double().numpy() / 0.3
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)

        def score(given: np.ndarray, bank: np.ndarray, patches: np.ndarray = patches) -> np.ndarray:
            distances = np.linalg.norm(patches[:, None] - bank[None], axis=2)
            likelihood = 0.99 * np.exp(-0.99 * distances)
            possible = given > 0.5 / len(bank)
            best = np.where(possible, likelihood, 0).max(axis=1)
            best = np.where(possible.any(axis=1), best, likelihood.min(axis=1))
            return -np.log(best).reshape(16, 16)

        bank = state["inner_bank"]
        neighbourhood = score(probabilities[:, state["parents"]], bank)
        excluded += int((neighbourhood > score(np.ones((256, len(bank))), bank) + 0.1).sum())
        mean = (neighbourhood + score(state["inner_histogram"], bank)) / 2
        grids["neighbourhood"].append(np.pad(neighbourhood[2:-2, 2:-2], 2, mode="edge"))
        grids["combined"].append(np.pad(mean[2:-2, 2:-2], 2, mode="edge"))
        grids["position"].append(score(state["full_histogram"], state["full_bank"]))
    assert excluded, "else the network's word would not be tested"
    for name, expected in grids.items():
        large = functional.interpolate(
            torch.from_numpy(np.stack(expected))[:, None], (64, 64), mode="bilinear"
        )[:, 0].numpy()
        smooth = np.stack([gaussian_filter(image, 8.0) for image in large])
        np.testing.assert_allclose(prediction.maps[name], smooth, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(prediction.scores[name], smooth.max(axis=(1, 2)), rtol=1e-3)


def test_training(fit: Any, feature_toy: Any) -> None:
    """The network learns to tell the centre's class from its neighbours."""
    parameters = SMALL | {"dropout": 0.1, "window_batch": 64}
    trained = fit("pni", parameters, feature_toy.train, epochs=5)
    losses = [losses["validation_loss"] for losses in trained.progress.losses]
    chance = math.log(40)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6 * chance


def test_learning_rate_falls(fit: Any, feature_toy: Any) -> None:
    for epochs, steps in ((2, 0), (3, 1), (5, 2)):
        parameters = SMALL | {"decay_epochs": 2}
        algorithm = fit("pni", parameters, feature_toy.train.take(5), epochs=epochs).algorithm
        (group,) = algorithm.optimizer.param_groups
        assert group["lr"] == pytest.approx(1e-3 * 0.1**steps)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_best_epoch_is_kept(fit: Any, build: Any, feature_toy: Any, tmp_path: Path) -> None:
    # From the second epoch on, the learning rate is a million times larger.
    parameters = SMALL | {"decay": 1e6, "decay_epochs": 1}
    train = feature_toy.train.take(6)
    first, third = (fit("pni", parameters, train, epochs=epochs) for epochs in (1, 3))
    losses = [losses["validation_loss"] for losses in third.progress.losses]
    assert min(losses) == losses[0]
    assert third.algorithm.best_loss == losses[0]
    assert first.same_model(third)
    assert not same(third.algorithm.network.state_dict(), third.algorithm.best.state_dict())
    # A resumed training knows both.
    resumed = build("pni", parameters, train)
    resumed.load(third.folder)
    resumed.load_training_state(third.algorithm.training_state())
    assert (resumed.epoch, resumed.best_loss) == (3, losses[0])
    assert same(resumed.training_state(), third.algorithm.training_state())
    assert same(resumed.state(), third.algorithm.state())


# Two kinds of patches on a grid of 12 x 12, no two alike.
KINDS = np.array([[0.0, 3, 0, 3], [4, 0, 4, 0]])


def reader(like: Any, kinds: np.ndarray, seed: int) -> Any:
    """Images (N, 4, 12, 12) of the given kinds of patches (N, 12, 12)."""
    noise = np.random.default_rng(seed).normal(0, 0.02, (len(kinds), 4, 12, 12))
    return type(like)([(KINDS[kinds].transpose(0, 3, 1, 2) + noise).astype(np.float32)])


TWO_KINDS = SMALL | {
    "patch_size": 1,
    "border": 0,
    "coreset_ratio": 0.01,
    "distribution_size": 6,
    "position_window": 3,
    "dropout": 0.0,
    "window_batch": 32,
    "decay_epochs": 10,
    "temperature": 1.0,
    "sigma": 0.01,
}
APART = 0.99 * math.dist(*KINDS)


def test_normal_elsewhere(feature_toy: Any, fit: Any, predict: Any) -> None:
    """Left of the middle one kind, right of it the other; a patch of the right on the left."""
    kinds = np.zeros((8, 12, 12), int)
    kinds[:, :, 6:] = 1
    algorithm = fit("pni", TWO_KINDS, reader(feature_toy.train, kinds, 0), size=12).algorithm
    clean = kinds[:1]
    misplaced = clean.copy()
    misplaced[0, 5, 2] = 1
    maps = predict(algorithm, reader(feature_toy.train, np.concatenate([clean, misplaced]), 1)).maps
    assert maps["position"][0].max() < 0.1 * APART
    assert float(maps["position"][1, 5, 2]) == pytest.approx(APART, rel=0.05)


def test_normal_in_other_images(feature_toy: Any, fit: Any, predict: Any) -> None:
    """Images are of one kind or the other; one patch of an image is of the wrong kind."""
    kinds = np.zeros((10, 12, 12), int)
    kinds[1::2] = 1
    train = reader(feature_toy.train, kinds, 0)
    algorithm = fit("pni", TWO_KINDS, train, epochs=8, size=12).algorithm
    odd = kinds[:1].copy()
    odd[0, 5, 5] = 1
    maps = predict(algorithm, reader(feature_toy.train, np.concatenate([kinds[:1], odd]), 1)).maps
    assert maps["position"].max() < 0.1 * APART, "both kinds are normal everywhere"
    assert maps["neighbourhood"][0].max() < 0.1 * APART
    assert float(maps["neighbourhood"][1, 5, 5]) == pytest.approx(APART, rel=0.05)
