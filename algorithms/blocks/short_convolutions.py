"""Convolutions in fewer products, after Toom and Cook (Winograd's, for kernels of 3).

A tile of outputs is ``A [(G g G') * (B d B')] A'`` of the weights g and the inputs d: 49 products
of numbers for 4 x 4 outputs with a kernel of 4, where a plain convolution has 256. What is left is
a matrix product for each place in the tile.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Points at which the polynomials behind short convolutions are evaluated, and infinity.
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)


@lru_cache
def short_convolution(tile: int, kernel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of a one-dimensional convolution with ``tile`` outputs.

    Returns
    -------
    A, B, G
        (tile, n), (n, n), (n, kernel) with n = tile + kernel - 1, such that A [(G g) * (B d)] are
        the inner products of g (kernel,) with each run of d (n,). It is the transpose of a product
        of polynomials, which is found by their values at n points.
    """
    count = tile + kernel - 1

    def values(length: int) -> np.ndarray:
        matrix = np.vander(np.array(POINTS[: count - 1]), length, increasing=True)
        return np.vstack([matrix, np.eye(length)[-1]])  # the leading coefficient: at infinity

    transform, weights = np.linalg.inv(values(count)).T, values(kernel)
    scale = np.abs(transform).max(axis=1, keepdims=True)  # inputs and weights of one magnitude
    return values(tile).T, transform / scale, weights * scale


def short_weights(weight: Tensor, tile: int) -> Tensor:
    """Weights (D, C, k, k) as factors of a short convolution, (n * n, C, D)."""
    matrix = short_convolution(tile, weight.shape[-1])[2]
    transform = torch.from_numpy(np.kron(matrix, matrix)).to(weight.device)  # (n * n, k * k)
    factors = transform @ weight.permute(2, 3, 1, 0).flatten(0, 1).flatten(1).double()
    return factors.unflatten(1, (weight.shape[1], weight.shape[0])).to(weight.dtype)


def convolve_tiles(x: Tensor, factors: Tensor, bias: Tensor, tile: int, kernel: int) -> Tensor:
    """Convolve (N, C, h, w), unpadded, in tiles of outputs; weights from :func:`short_weights`."""
    _, _, height, width = x.shape
    out = (height - kernel + 1, width - kernel + 1)
    tiles = [-(-side // tile) for side in out]
    count = tile + kernel - 1
    missing = [tiles[axis] * tile - out[axis] for axis in (0, 1)]
    x = functional.pad(x, (0, missing[1], 0, missing[0])).permute(0, 2, 3, 1)
    windows = x.unfold(1, count, tile).unfold(2, count, tile)  # (N, rows, columns, C, n, n)
    collect, spread = (
        torch.from_numpy(np.kron(matrix, matrix)).to(x)
        for matrix in short_convolution(tile, kernel)[:2]
    )
    values = spread @ windows.permute(4, 5, 0, 1, 2, 3).reshape(count * count, -1)
    values = torch.bmm(values.unflatten(1, (-1, factors.shape[1])), factors)
    result = (collect @ values.flatten(1)).view(tile, tile, len(x), *tiles, -1)
    result = result.permute(2, 3, 0, 4, 1, 5).flatten(1, 2).flatten(2, 3)
    return (result[:, : out[0], : out[1]] + bias).permute(0, 3, 1, 2)
