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


def greedy_coreset(features: Tensor, size: int, starts: int, generator: torch.Generator) -> Tensor:
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
    A choice costs one matrix-vector product and one pass over N squared distances: nothing is
    concatenated, no root is taken, and no N x N matrix exists.
    """
    count = len(features)
    if not 1 <= size <= count:
        raise ValueError(f"a coreset of {count} rows has 1 to {count} rows, not {size}")
    squares = features.square().sum(dim=1)
    first = torch.randperm(count, generator=generator)[:starts].to(features.device)
    nearest = torch.cdist(features, features[first]).mean(dim=1).square_()
    distances = torch.empty_like(nearest)
    chosen = torch.empty(size, dtype=torch.int64, device=features.device)
    for step in tqdm(range(size), desc="coreset", disable=None, leave=False, mininterval=1.0):
        pick = nearest.argmax()
        chosen[step] = pick
        torch.addmv(squares, features, features[pick], alpha=-2, out=distances)
        torch.minimum(nearest, distances.add_(squares[pick]), out=nearest)
        nearest[pick] = -math.inf  # rounding must not let a row be chosen twice
    return chosen


def coverage_radius(features: Tensor, chosen: Tensor) -> float:
    """Largest distance from any row to its nearest chosen row: what k-centre minimises."""
    nearest = torch.full((len(features),), math.inf, device=features.device)
    for part in chosen.split(1024):
        nearest = torch.minimum(nearest, torch.cdist(features, features[part]).amin(dim=1))
    return float(nearest.max())
