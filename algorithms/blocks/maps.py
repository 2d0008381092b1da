"""From patch scores to anomaly maps: upsampling and Gaussian smoothing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional


def upsample(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize maps (N, h, w) bilinearly to (N, H, W)."""
    resized = functional.interpolate(
        maps[:, None], size=size, mode="bilinear", align_corners=align_corners
    )
    return resized[:, 0]


@lru_cache
def _gaussian_operator(side: int, sigma: float) -> np.ndarray:
    # Filtering is linear: its matrix is the filter applied to the identity. Taking SciPy's keeps
    # the border rule of the papers' code (the edge pixel is repeated), which torch's padding lacks.
    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect", truncate=4.0)


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps (N, H, W) as ``scipy.ndimage.gaussian_filter`` does, on any device.

    Two matrix products per map, about ten times faster than filtering image by image.
    """
    rows = torch.from_numpy(_gaussian_operator(maps.shape[1], sigma)).to(maps)
    columns = torch.from_numpy(_gaussian_operator(maps.shape[2], sigma)).to(maps)
    return rows @ maps @ columns.T
