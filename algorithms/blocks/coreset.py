"""Greedy coreset: few points that leave no point far away (k-centre)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm


def random_projection(features: Tensor, dimensions: int, generator: torch.Generator) -> Tensor:
    """Project (N, D) to (N, dimensions) by weights uniform in +-1/sqrt(D); unchanged if D <= it."""
    width = features.shape[1]
    if width <= dimensions:
        return features
    weights = torch.empty(width, dimensions).uniform_(-1, 1, generator=generator)
    return features @ (weights / math.sqrt(width)).to(features)


def greedy_coreset(
    features: Tensor, size: int, starts: int, generator: torch.Generator, pool: int = 4096
) -> Tensor:
    """Choose ``size`` rows, each the farthest from those chosen before it.

    The first is the farthest, in the mean, from ``starts`` random rows, and that mean stays an
    upper bound of the distances (the approximate greedy search of Roth et al., CVPR 2022, section
    3.2, as their code has it).

    Parameters
    ----------
    features
        (N, D), float32.
    size
        Number of rows to choose, 1 <= size <= N.
    pool
        Candidates per round; the choice does not depend on it.

    Returns
    -------
    Tensor
        Distinct row numbers (size,), int64, in the order of choice.

    Raises
    ------
    ValueError
        If ``size`` is out of range.

    Note
    ----
    Distances to the chosen rows only fall. So the farthest row is among the ``pool`` farthest ones
    of an earlier moment for as long as one of these is farther than all others were *then*. A round
    chooses within such a pool, which stays in the processor's cache, and then brings all N rows up
    to date with one matrix product instead of one matrix-vector product per choice.
    """
    count = len(features)
    if not 1 <= size <= count:
        raise ValueError(f"a coreset of {count} rows has 1 to {count} rows, not {size}")
    squares = features.square().sum(dim=1)
    first = torch.randperm(count, generator=generator)[:starts].to(features.device)
    nearest = torch.cdist(features, features[first]).mean(dim=1).square_()
    chosen = torch.empty(0, dtype=torch.int64, device=features.device)
    bar = tqdm(total=size, desc="coreset", disable=None, leave=False, mininterval=1.0)
    while len(chosen) < size:
        picks = _choose_in_pool(features, squares, nearest, pool, min(size - len(chosen), pool))
        _lower(nearest, features, squares, picks)
        nearest[picks] = -math.inf  # rounding must not let a row be chosen twice
        chosen = torch.cat([chosen, picks])
        bar.update(len(picks))
    bar.close()
    return chosen


def _choose_in_pool(
    features: Tensor, squares: Tensor, nearest: Tensor, pool: int, most: int
) -> Tensor:
    """Choose the next rows for as long as the pool is sure to hold the farthest; at least one."""
    distances, rows = nearest.topk(min(pool, len(nearest)))
    outside = float(distances[-1]) if len(rows) < len(nearest) else -math.inf
    candidates, candidate_squares = features[rows], squares[rows]
    update = torch.empty_like(distances)
    picks: list[int] = []
    while len(picks) < most:
        pick = int(distances.argmax())
        if picks and float(distances[pick]) < outside:
            break
        picks.append(pick)
        torch.addmv(candidate_squares, candidates, candidates[pick], alpha=-2, out=update)
        torch.minimum(distances, update.add_(candidate_squares[pick]), out=distances)
        distances[pick] = -math.inf
    return rows[picks]


def _lower(nearest: Tensor, features: Tensor, squares: Tensor, picks: Tensor) -> None:
    """Lower squared distances (N,) to the nearest of ``picks``, in blocks of some megabytes."""
    centres, offsets = features[picks].T.contiguous(), squares[picks]
    step = max(1, 2**21 // len(picks))
    for start in range(0, len(features), step):
        rows = slice(start, start + step)
        products = torch.addmm(offsets, features[rows], centres, alpha=-2)
        torch.minimum(nearest[rows], products.amin(dim=1).add_(squares[rows]), out=nearest[rows])


def coverage_radius(features: Tensor, chosen: Tensor) -> float:
    """Largest distance from any row to its nearest chosen row: what k-centre minimises."""
    nearest = torch.full((len(features),), math.inf, device=features.device)
    for part in chosen.split(1024):
        nearest = torch.minimum(nearest, torch.cdist(features, features[part]).amin(dim=1))
    return float(nearest.max())
