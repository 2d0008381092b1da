"""Perlin noise, and random masks cut from it.

Perlin, "An Image Synthesizer", SIGGRAPH 1985, with the fade f(t) = 6 t^5 - 15 t^4 + 10 t^3 of 2002.
A unit vector g of random direction stands at each corner of a lattice of cells; a pixel at the
offset d = (dy, dx), in cells, from a corner has there the value <g, d>, and

    noise = sqrt(2) sum_corners f(1 - |dy|) f(1 - |dx|) <g, d>    over the four corners of its cell.

Every factor belongs to a row or to a column, so the sum is two products of three small matrices.

All functions of the blocks ``perlin``, ``textures`` and ``synthetic`` draw from torch's global
generator, on the CPU, so that equal seeds give equal images on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision


def uniform(low: float, high: float) -> float:
    """Draw a number."""
    return low + (high - low) * float(torch.rand(()))


def random_rotation(image: Tensor, degrees: float) -> Tensor:
    """Rotate (C, H, W) about its centre by U(-degrees, degrees): bilinear, zeros come in."""
    angle = uniform(-degrees, degrees)
    return vision.rotate(image, angle, InterpolationMode.BILINEAR)


def _lattice(length: int, cells: int) -> tuple[Tensor, Tensor]:
    """Weights of the corners for each pixel of one axis, and the same times the offsets."""
    place = torch.arange(length)[:, None] * (cells / length)
    offset = place - torch.arange(cells + 1)
    near = (1 - offset.abs()).clamp(min=0)
    weight = near**3 * (near * (6 * near - 15) + 10)
    return weight, weight * offset


def perlin_noise(size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Make noise (H, W), about in [-1, 1], on a lattice of (rows, columns) of cells."""
    angle = 2 * math.pi * torch.rand(cells[0] + 1, cells[1] + 1)
    rows, rows_offset = _lattice(size[0], cells[0])
    columns, columns_offset = _lattice(size[1], cells[1])
    down = rows_offset @ angle.sin() @ columns.T
    across = rows @ angle.cos() @ columns_offset.T
    return math.sqrt(2) * (down + across)


def perlin_mask(
    size: tuple[int, int],
    exponents: tuple[int, int] = (0, 5),
    threshold: float = 0.5,
    rotate: float = 90.0,
) -> Tensor:
    """Make a mask (H, W), bool: Perlin noise, rotated, above a threshold; it may be empty.

    The noise has 2^a x 2^b cells, a and b drawn from ``exponents``, both ends included. DRAEM's
    values, which MemSeg took over.
    """
    rows, columns = (2 ** torch.randint(exponents[0], exponents[1] + 1, (2,))).tolist()
    noise = perlin_noise(size, (rows, columns))
    return random_rotation(noise[None], rotate)[0] > threshold
