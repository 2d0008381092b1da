"""PatchCore against brute force, and its re-weighted score against a loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from torch.nn import functional

from algorithms.base import Context, create
from algorithms.patchcore import reweighted_score
from stages.batches import BatchLoader

GRID = 16
PLAIN = {"pretrain_dimension": None, "target_dimension": None}  # the mean of each channel
WHOLE = PLAIN | {"coreset_ratio": 1.0}  # every training patch is in the bank


def patches(layers: list[np.ndarray]) -> np.ndarray:
    """Means over 3 x 3 neighbours, zeros outside, on the finest grid: (N, P, C), float64."""
    parts = []
    for layer in layers:
        means = uniform_filter(layer.astype(np.float64), (1, 1, 3, 3), mode="constant")
        resized = functional.interpolate(torch.from_numpy(means), (GRID, GRID), mode="bilinear")
        parts.append(resized.flatten(2).mT.numpy())
    return np.concatenate(parts, axis=2)


def brute_force(bank: np.ndarray, tested: np.ndarray, neighbours: int = 1) -> np.ndarray:
    """Mean of the squared distances to the nearest rows of a bank: (N, P)."""
    squared = ((tested[:, :, None] - bank[None, None]) ** 2).sum(axis=-1)
    return np.sort(squared, axis=2)[..., :neighbours].mean(axis=2)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_squared_distance_to_nearest(
    feature_toy: Any, fit: Any, predict: Any, neighbours: int
) -> None:
    train, test = feature_toy.train.take(2), feature_toy.test.take(6)
    parameters = WHOLE | {"neighbours": neighbours}
    prediction = predict(fit("patchcore", parameters, train).algorithm, test)
    bank = patches(train.arrays).reshape(2 * GRID**2, -1)
    expected = brute_force(bank, patches(test.arrays), neighbours)
    # The largest patch score, taken before smoothing.
    np.testing.assert_allclose(prediction.scores["nearest"], expected.max(axis=1), rtol=1e-4)
    grids = torch.from_numpy(expected.reshape(-1, 1, GRID, GRID))
    large = functional.interpolate(grids, (64, 64), mode="bilinear")[:, 0].numpy()
    smooth = np.stack([gaussian_filter(image, 4.0) for image in large])
    np.testing.assert_allclose(prediction.maps["nearest"], smooth, rtol=1e-3)


def test_more_neighbours_than_members(feature_toy: Any, fit: Any, predict: Any) -> None:
    train = feature_toy.train.take(1)
    parameters = WHOLE | {"neighbours": 10_000}
    prediction = predict(fit("patchcore", parameters, train).algorithm, feature_toy.clean)
    bank = patches(train.arrays)[0]
    expected = brute_force(bank, patches(feature_toy.clean.arrays), len(bank)).max(axis=1)
    np.testing.assert_allclose(prediction.scores["nearest"], expected, rtol=1e-4)


def test_bank_is_a_share_of_the_patches(feature_toy: Any, fit: Any) -> None:
    everything = fit("patchcore", WHOLE, feature_toy.train).algorithm.members[0].bank
    # Searched in 8 of 60 dimensions, kept in all of them.
    parameters = PLAIN | {"coreset_ratio": 0.1, "projection_dimension": 8}
    bank = fit("patchcore", parameters, feature_toy.train).algorithm.members[0].bank
    assert len(everything) == len(feature_toy.train) * GRID**2
    assert len(bank) == int(0.1 * len(everything))
    rows = {row.numpy().tobytes() for row in everything}
    chosen = {row.numpy().tobytes() for row in bank}
    assert chosen < rows
    assert len(chosen) == len(bank)


def test_bank_holds_a_row_at_least(feature_toy: Any, fit: Any) -> None:
    bank = (
        fit("patchcore", PLAIN | {"coreset_ratio": 1e-9}, feature_toy.train)
        .algorithm.members[0]
        .bank
    )
    assert len(bank) == 1


def test_seed_chooses_the_coreset(feature_toy: Any, fit: Any) -> None:
    # 60 dimensions projected to 8, so that the projection is drawn too.
    parameters = PLAIN | {"coreset_ratio": 0.02, "projection_dimension": 8}
    banks = [
        fit("patchcore", parameters, feature_toy.train, seed=seed).algorithm.members[0].bank
        for seed in (0, 1)
    ]
    assert not torch.equal(*banks)


@pytest.mark.parametrize("neighbours", [1, 3, 9, 50])
def test_reweighted_score(rng: np.random.Generator, neighbours: int) -> None:
    bank = rng.normal(size=(20, 5))
    patch = rng.normal(size=5) * 2
    distances = [math.dist(patch, member) for member in bank]
    nearest = min(range(20), key=lambda row: distances[row])
    around = sorted(range(20), key=lambda row: math.dist(bank[nearest], bank[row]))[:neighbours]
    crowd = sum(math.exp(distances[row]) for row in around)
    expected = (1 - math.exp(distances[nearest]) / crowd) * distances[nearest]
    result = reweighted_score(torch.from_numpy(patch), torch.from_numpy(bank), neighbours)
    assert float(result) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_reweighting_adds_a_score_and_changes_nothing_else(
    feature_toy: Any, fit: Any, predict: Any
) -> None:
    train, test = feature_toy.train.take(2), feature_toy.test.take(3)
    plain, both = (
        predict(fit("patchcore", WHOLE | extra, train).algorithm, test)
        for extra in ({}, {"reweight_neighbours": 9})
    )
    assert set(plain.scores) == {"nearest"}
    assert set(both.scores) == {"nearest", "reweighted"}
    torch.testing.assert_close(both.scores["nearest"], plain.scores["nearest"])
    torch.testing.assert_close(both.maps["nearest"], plain.maps["nearest"])
    # From the definition: the patch, its neighbour, and the neighbour's surroundings.
    bank = patches(train.arrays).reshape(2 * GRID**2, -1)
    for image, tested in enumerate(patches(test.arrays)):
        distances = np.sqrt(((tested[:, None] - bank[None]) ** 2).sum(axis=2))
        worst = distances.min(axis=1).argmax()
        member = distances[worst].argmin()
        around = np.argsort(((bank - bank[member]) ** 2).sum(axis=1))[:9]
        weights = np.exp(distances[worst])
        expected = (1 - weights[member] / weights[around].sum()) * distances[worst, member]
        assert float(both.scores["reweighted"][image]) == pytest.approx(expected, rel=1e-3)


def test_ensemble_averages_members_in_their_own_units(
    feature_toy: Any, build: Any, predict: Any
) -> None:
    """Three backbones of one layer each, beside three algorithms of one backbone."""
    train, test = feature_toy.train, feature_toy.test
    context = Context((64, 64), train.shapes, len(train), 0, torch.device("cpu"), members=3)
    ensemble = create("patchcore", PLAIN, context)
    ensemble.train_one_epoch(BatchLoader(train, np.arange(len(train)), 4, context.device))
    generator = torch.Generator().manual_seed(0)  # which each takes up where the last left it
    maps, scores = [], []
    for layer, member in enumerate(ensemble.members):
        alone = type(train)([train.arrays[layer]]), type(test)([test.arrays[layer]])
        one = build("patchcore", PLAIN, alone[0])
        loader = BatchLoader(alone[0], np.arange(len(train)), 4, context.device)
        every = one.members[0].fit(iter(loader), len(train), generator).numpy()
        drawn = torch.randperm(len(every), generator=generator)[:10_000].numpy()
        torch.testing.assert_close(one.members[0].bank, member.bank)
        unit = brute_force(member.bank.numpy(), every[drawn][None]).mean()
        assert float(member.unit) == pytest.approx(unit, rel=1e-3)
        prediction = predict(one, alone[1])
        maps.append(prediction.maps["nearest"].numpy() / unit)
        scores.append(prediction.scores["nearest"].numpy() / unit)
    together = predict(ensemble, test)
    np.testing.assert_allclose(together.maps["nearest"], np.mean(maps, axis=0), rtol=2e-3)
    np.testing.assert_allclose(together.scores["nearest"], np.mean(scores, axis=0), rtol=2e-3)
