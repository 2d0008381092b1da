"""Patches in their place: windows around positions, who was seen there, who is possible there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from algorithms.base import Batch

BLOCK = 2**20  # distances at a time


def window_places(grid: tuple[int, int], window: int, dropped: int) -> Tensor:
    """Numbers of the positions in the window around each of P positions, row by row: (P, K).

    Outside is number P. Entry ``dropped`` of each window is left out: K = window^2 - 1.
    """
    count = grid[0] * grid[1]
    numbers = torch.arange(count).view(1, *grid)
    padded = functional.pad(numbers, (window // 2,) * 4, value=count)[0]
    windows = padded.unfold(0, window, 1).unfold(1, window, 1).reshape(count, window**2)
    return windows[:, torch.arange(window**2) != dropped]


@dataclass(frozen=True)
class Windows:
    """One pass over training positions in batches [windows (B, K * D), targets (B,)].

    Windows are cut out batch by batch: all of them are K times as large as the features.
    """

    features: Tensor  # (N * P + 1, D); the last row is 0, what is outside an image
    targets: Tensor  # (N * Q,), of Q positions per image
    places: Tensor  # (Q, K): numbers of the positions in their windows, P if outside
    order: Tensor  # row numbers of the targets
    batch: int

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        outside, count = len(self.features) - 1, len(self.places)
        positions = outside // (len(self.targets) // count)
        # Of nearly equal sizes: a last batch of one window would have no batch statistics.
        for samples in self.order.tensor_split(len(self)):
            images = torch.div(samples, count, rounding_mode="floor")
            places = self.places[samples % count]
            rows = torch.where(places < positions, images[:, None] * positions + places, outside)
            yield [self.features[rows].flatten(1), self.targets[samples]]


def position_histogram(
    members: Tensor, places: Tensor, grid: tuple[int, int], size: int, window: int
) -> Tensor:
    """Shares (P, M) of a coreset's M = ``size`` members among the votes around each position.

    Parameters
    ----------
    members
        Number of the member nearest to each voting patch (N, Q).
    places
        Positions of these patches in their image (Q,).
    """
    votes = torch.bincount((places * size + members).flatten(), minlength=grid[0] * grid[1] * size)
    counts = votes.view(*grid, size).permute(2, 0, 1).float()
    sums = functional.avg_pool2d(counts, window, 1, window // 2, divisor_override=1)
    return (sums / sums.sum(dim=0).clamp(min=1)).flatten(1).T


def nearest_possible(patches: Tensor, bank: Tensor, possible: Tensor) -> Tensor:
    """Distances (k, P) of patches (P, D) to the nearest possible member of a bank (M, D).

    Each of k conditions makes other members possible, (k, P, M) bool; if none, the farthest is.
    """
    offsets, results = bank.square().sum(dim=1), []
    rows = max(1, BLOCK // len(bank))
    for part, masks in zip(patches.split(rows), possible.split(rows, dim=1), strict=True):
        squared = torch.addmm(offsets, part, bank.T, alpha=-2)
        squared += part.square().sum(dim=1, keepdim=True)
        nearest = torch.where(masks, squared, math.inf).amin(dim=2)
        found = torch.where(nearest.isinf(), squared.amax(dim=1), nearest)
        results.append(found.clamp_(min=0).sqrt_())
    return torch.cat(results, dim=1)
