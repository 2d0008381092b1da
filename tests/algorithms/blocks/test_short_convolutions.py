"""Short convolutions: their matrices, and equality with plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from algorithms.blocks.short_convolutions import (
    convolve_tiles,
    short_convolution,
    short_weights,
)


@pytest.mark.parametrize(("tile", "kernel"), [(2, 4), (3, 4), (4, 4), (4, 3), (1, 3)])
def test_short_convolution(rng: np.random.Generator, tile: int, kernel: int) -> None:
    collect, spread, weights = short_convolution(tile, kernel)
    signal, filter_ = rng.normal(size=tile + kernel - 1), rng.normal(size=kernel)
    expected = np.correlate(signal, filter_, mode="valid")
    np.testing.assert_allclose(collect @ ((weights @ filter_) * (spread @ signal)), expected)


@pytest.mark.parametrize(("tile", "kernel"), [(2, 4), (4, 4), (4, 3)])
@pytest.mark.parametrize("shape", [(1, 5, 12, 15), (3, 8, 9, 4)])
def test_convolution_in_tiles(
    rng: np.random.Generator, tile: int, kernel: int, shape: tuple[int, ...]
) -> None:
    x, weight, bias = (
        torch.from_numpy(rng.normal(size=size))
        for size in (shape, (7, shape[1], kernel, kernel), (7,))
    )
    expected = functional.conv2d(x, weight, bias)
    result = convolve_tiles(x, short_weights(weight, tile), bias, tile, kernel)
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected)
