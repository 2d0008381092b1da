"""The random classifier: chance, and nothing but the image and the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from algorithms.base import Prediction


@pytest.fixture(scope="module")
def prediction(image_toy: Any, build: Any, predict: Any) -> Prediction:
    result: Prediction = predict(build("random", {}, image_toy.train), image_toy.test)
    return result


@pytest.mark.parametrize(("method", "distribution"), [("uniform", "uniform"), ("normal", "norm")])
def test_distribution(prediction: Prediction, method: str, distribution: str) -> None:
    values = prediction.maps[method].flatten().numpy()
    assert kstest(values, distribution).pvalue > 1e-3
    assert prediction.scores[method].unique().numel() == len(prediction.scores[method])


def test_images_have_maps_of_their_own(prediction: Prediction) -> None:
    maps = prediction.maps["uniform"].flatten(1).numpy()
    correlations = np.corrcoef(maps)[~np.eye(len(maps), dtype=bool)]
    assert np.abs(correlations).max() < 0.1


def test_an_image_is_told_by_its_pixels(image_toy: Any, build: Any, predict: Any) -> None:
    algorithm = build("random", {}, image_toy.train)
    twice = type(image_toy.test)([np.repeat(image_toy.clean.arrays[0][:1], 2, axis=0)])
    first, second = predict(algorithm, twice).maps["uniform"]
    assert torch.equal(first, second)


def test_another_seed_another_map(image_toy: Any, build: Any, predict: Any) -> None:
    one, other = (
        predict(build("random", {}, image_toy.train, seed=seed), image_toy.clean) for seed in (0, 1)
    )
    assert not torch.equal(one.maps["uniform"], other.maps["uniform"])
    assert not torch.equal(one.scores["uniform"], other.scores["uniform"])
