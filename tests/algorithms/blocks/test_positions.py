"""The position encoding against its formula, entry by entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from algorithms.blocks.positions import position_encoding


@pytest.mark.parametrize(
    ("channels", "grid"), [(128, (8, 8)), (64, (5, 9)), (8, (40, 3)), (4, (1, 1))]
)
def test_formula(channels: int, grid: tuple[int, int]) -> None:
    half = channels // 2
    expected = np.zeros((channels, *grid))
    for channel in range(half):
        frequency = math.exp(-(channel - channel % 2) * math.log(10000) / half)
        wave = math.cos if channel % 2 else math.sin
        for row in range(grid[0]):
            for column in range(grid[1]):
                expected[channel, row, column] = wave(column * frequency)
                expected[half + channel, row, column] = wave(row * frequency)
    result = position_encoding(channels, grid)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    np.testing.assert_allclose(result, expected, atol=5e-6)


def test_places_differ() -> None:
    codes = position_encoding(128, (64, 64)).flatten(1).T
    assert float(torch.cdist(codes, codes).fill_diagonal_(9).min()) > 0.5


@pytest.mark.parametrize("channels", [1, 2, 6, 127])
def test_channels(channels: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4 channels, not {channels}"):
        position_encoding(channels, (4, 4))
