"""Upsampling and smoothing against PyTorch's and SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from algorithms.blocks.maps import gaussian_smooth, upsample


@pytest.mark.parametrize("sigma", [0.7, 4.0, 20.0])
@pytest.mark.parametrize("size", [(64, 64), (40, 72), (5, 9)])  # the last: smaller than the kernel
def test_smoothing_is_scipys(rng: np.random.Generator, size: tuple[int, int], sigma: float) -> None:
    maps = rng.normal(size=(3, *size)).astype(np.float32)
    maps[:, 0, 0] = 50  # a border that counts
    expected = [gaussian_filter(image.astype(np.float64), sigma) for image in maps]
    result = gaussian_smooth(torch.from_numpy(maps), sigma)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_smoothing_keeps_the_sum(rng: np.random.Generator) -> None:
    maps = torch.from_numpy(rng.random((2, 20, 30)))
    torch.testing.assert_close(gaussian_smooth(maps, 4.0).sum((1, 2)), maps.sum((1, 2)))


def test_smoothing_does_not_mix_images() -> None:
    maps = torch.zeros(2, 16, 16)
    maps[0] = 1
    result = gaussian_smooth(maps, 4.0)
    torch.testing.assert_close(result, maps)


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling_is_bilinear(rng: np.random.Generator, align_corners: bool) -> None:
    maps = torch.from_numpy(rng.normal(size=(3, 4, 6)))
    expected = functional.interpolate(
        maps.unsqueeze(1), size=(17, 30), mode="bilinear", align_corners=align_corners
    ).squeeze(1)
    torch.testing.assert_close(upsample(maps, (17, 30), align_corners), expected)


def test_upsampling_known_values() -> None:
    ramp = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    # Centres of cells are aligned by default: the outer quarters repeat the border.
    rows = upsample(ramp, (2, 4))[0]
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.25, 0.75, 1.0]] * 2))
    corners = upsample(ramp, (2, 3), align_corners=True)[0]
    torch.testing.assert_close(corners, torch.tensor([[0.0, 0.5, 1.0]] * 2))
