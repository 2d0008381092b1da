"""The focal loss and the pooled maximum against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from algorithms.blocks.segmentation import focal_loss, pooled_maximum


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss(rng: np.random.Generator, gamma: float) -> None:
    logits = rng.normal(0, 3, (3, 2, 5, 4))
    target = rng.random((3, 5, 4)) < 0.3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    total = 0.0
    for image, row, column in np.ndindex(target.shape):
        one_hot = np.full(2, 1e-5)
        one_hot[int(target[image, row, column])] = 1 - 1e-5
        p = float(one_hot @ probabilities[image, :, row, column]) + 1e-5
        total -= (1 - p) ** gamma * np.log(p)
    result = focal_loss(torch.from_numpy(logits), torch.from_numpy(target), gamma)
    assert float(result) == pytest.approx(total / target.size)


def test_focal_loss_weighs_both_classes_alike(rng: np.random.Generator) -> None:
    logits, target = torch.from_numpy(rng.normal(size=(2, 2, 6, 6))), torch.zeros(2, 6, 6).bool()
    target[:, :3] = True
    torch.testing.assert_close(focal_loss(logits, target), focal_loss(logits.flip(1), ~target))


@pytest.mark.parametrize("sign", [-1, 1])
def test_focal_loss_is_finite_where_the_network_is_sure(sign: int) -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 0], logits[:, 1] = 200 * sign, -200 * sign
    logits.requires_grad_(True)
    loss = focal_loss(logits, torch.ones(1, 2, 2).bool())
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert loss < 1e-6 if sign < 0 else loss > 5


@pytest.mark.parametrize("window", [3, 21])
def test_pooled_maximum(rng: np.random.Generator, window: int) -> None:
    maps = rng.random((3, 30, 27))
    maps[1, 0, 0] = 50  # a corner: the zeros around it count
    expected = [uniform_filter(image, window, mode="constant", cval=0.0).max() for image in maps]
    np.testing.assert_allclose(pooled_maximum(torch.from_numpy(maps), window), expected)


def test_pooled_maximum_of_one_pixel() -> None:
    maps = torch.zeros(1, 64, 64)
    maps[0, 30, 30] = 1
    assert float(pooled_maximum(maps)) == pytest.approx(1 / 21**2)
