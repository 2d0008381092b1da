"""Square patches of images: where they lie on a grid, where random ones lie, cutting them out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIRECTIONS = 12  # in which a neighbour may lie


def grid(length: int, size: int, step: int) -> Tensor:
    """First pixels of patches along one side; the last patch ends at the border."""
    places = list(range(0, length - size + 1, step))
    return torch.tensor(places if places[-1] == length - size else [*places, length - size])


def cover(length: int, size: int, starts: Tensor) -> Tensor:
    """Which patches cover which pixels of one side, averaged: (length, patches)."""
    pixels = torch.arange(length)[:, None]
    inside = ((pixels >= starts) & (pixels < starts + size)).float()
    return inside / inside.sum(dim=1, keepdim=True).clamp(min=1)


def cut(images: Tensor, rows: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut a patch (3, size, size) out of image ``rows[p]`` at (top, left) ``corners[p]``."""
    inside = torch.arange(size, device=images.device)
    tops = (corners[:, :1] + inside)[:, None, :, None]
    lefts = (corners[:, 1:] + inside)[:, None, None, :]
    channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[rows[:, None, None, None], channels, tops, lefts]


def draw_corners(count: int, size: int, sides: tuple[int, int]) -> dict[str, Tensor]:
    """Draw places of first, neighbouring, near and far patches.

    A neighbour lies 3/4 to 1 patch away along each axis times the direction's (cos, sin); a far
    patch another 3/4 beyond; a near one at most 1/16, but never at the same place.

    Returns
    -------
    dict
        ``first``, ``neighbour``, ``near``, ``far``: (count, 2) int64; ``direction``: (count,).
    """
    limits = torch.tensor(sides) - size
    first = (torch.rand(count, 2) * (limits + 1)).long()
    direction = torch.randint(DIRECTIONS, (count,))
    angle = direction * (2 * math.pi / DIRECTIONS)
    unit = torch.stack([angle.cos(), angle.sin()], dim=1)
    unit = torch.where(unit.abs() < 1e-6, 0.0, unit)
    reach = 3 * size // 4
    offset = (unit * (reach + torch.randint(max(1, size // 4), (count, 2)))).round()
    farther = offset + torch.where(offset < 0, -reach, reach)
    jitter = max(1, size // 16)
    near = torch.randint(-jitter, jitter + 1, (count, 2))
    near = torch.where((near == 0).all(dim=1, keepdim=True), torch.tensor([0, 1]), near)

    def inside(move: Tensor) -> Tensor:
        return torch.minimum((first + move.long()).clamp(min=0), limits)

    return {
        "first": first, "neighbour": inside(offset), "near": inside(near), "far": inside(farther),
        "direction": direction,
    }  # fmt: skip
