"""Exact nearest neighbours in blocks: bounded memory, at the speed of the matrix product."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 1024  # queries at a time
BLOCK = 2**19  # distances, or values of bank members, at a time: 2 MB, which a cache holds


def _products(queries: Tensor, bank: Tensor) -> Iterator[Tensor]:
    """|m|^2 - 2 q'm of queries (P, D) and a bank (M, D), block by block: (P, some of M)."""
    if not len(bank):
        raise ValueError("an empty bank has no nearest member")
    # The product of [-2 q, 1] and [m, |m|^2], so that |m|^2 needs no pass of its own.
    extended = torch.cat([queries * -2, queries.new_ones(len(queries), 1)], dim=1)
    for members in bank.split(max(1, BLOCK // max(1, *extended.shape))):
        squares = members.square().sum(dim=1, keepdim=True)
        yield extended @ torch.cat([members, squares], dim=1).T


def nearest_distance(queries: Tensor, bank: Tensor) -> Tensor:
    """Squared Euclidean distance of each query to its nearest bank member.

    Parameters
    ----------
    queries, bank
        (P, D) and (M, D), float.

    Returns
    -------
    Tensor
        (P,), at least 0.

    Raises
    ------
    ValueError
        If the bank is empty.

    Note
    ----
    |q - m|^2 = |q|^2 + (|m|^2 - 2 q'm), and |q|^2 does not change which m is nearest: it is added
    to the minima alone. Each block of products is reduced while it is in the cache.
    """
    nearest = []
    for part in queries.split(ROWS):
        lowest = part.new_full((len(part),), math.inf)
        for products in _products(part, bank):
            torch.minimum(lowest, products.amin(dim=1), out=lowest)
        nearest.append(lowest.add_(part.square().sum(dim=1)).clamp_(min=0))
    return torch.cat(nearest)


def nearest_members(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Squared distances to the ``count`` nearest bank members, ascending, and their row numbers.

    Parameters
    ----------
    queries, bank
        (P, D) and (M, D), float.
    count
        At most M are given.

    Returns
    -------
    distances
        (P, K), at least 0, with K = min(count, M).
    members
        (P, K), int64, each row's distinct; which of equally near ones, is left open.

    Raises
    ------
    ValueError
        If the bank is empty.
    """
    results = []
    for part in queries.split(ROWS):
        lowest = part.new_empty(len(part), 0)
        rows = torch.empty(len(part), 0, dtype=torch.int64, device=part.device)
        start = 0
        for products in _products(part, bank):
            width = products.shape[1]
            values, places = products.topk(min(count, width), dim=1, largest=False)
            lowest = torch.cat([lowest, values], dim=1)
            rows = torch.cat([rows, places.add_(start)], dim=1)
            start += width
            lowest, kept = lowest.topk(min(count, lowest.shape[1]), dim=1, largest=False)
            rows = rows.gather(1, kept)
        distances = lowest.add_(part.square().sum(dim=1, keepdim=True)).clamp_(min=0)
        results.append((distances, rows))
    return torch.cat([pair[0] for pair in results]), torch.cat([pair[1] for pair in results])
