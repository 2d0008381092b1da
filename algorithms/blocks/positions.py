"""Sinusoidal encoding of places on a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def position_encoding(channels: int, grid: tuple[int, int]) -> Tensor:
    """Encode columns and rows of a grid: (channels, H, W), float32, values in [-1, 1].

    The first half of the channels tells the column, the second the row: sine and cosine in turn, of
    the index times 10000^(-2k/channels') with channels' = channels / 2, k = 0, 1, ... (Vaswani et
    al. 2017, in two dimensions as in CFLOW-AD and MSFlow).

    Raises
    ------
    ValueError
        If ``channels`` is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"a position encoding has a multiple of 4 channels, not {channels}")
    half, (height, width) = channels // 2, grid
    frequencies = torch.exp(torch.arange(0, half, 2) * (-math.log(10000.0) / half))

    def code(count: int) -> Tensor:  # (half, count)
        angles = frequencies[:, None] * torch.arange(count)
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)

    columns = code(width)[:, None, :].expand(half, height, width)
    rows = code(height)[:, :, None].expand(half, height, width)
    return torch.cat([columns, rows])
