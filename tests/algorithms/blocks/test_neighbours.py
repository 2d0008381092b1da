"""Nearest neighbours in blocks against brute force, block by block of every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.blocks import neighbours
from algorithms.blocks.neighbours import nearest_distance, nearest_members

BLOCKS = [1, 13, 40, 150, 2**19]  # of 23 queries in 7 dimensions: 1, 1, 1, 6 or all members


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(neighbours, "BLOCK", request.param)
    return int(request.param)


def cloud(rng: np.random.Generator, count: int, width: int = 7) -> Tensor:
    return torch.from_numpy(rng.normal(size=(count, width)).astype(np.float32))


def brute_force(queries: Tensor, bank: Tensor) -> np.ndarray:
    """All squared distances (P, M), in float64, by subtraction."""
    left, right = queries.numpy().astype(np.float64), bank.numpy().astype(np.float64)
    return np.asarray(((left[:, None] - right[None]) ** 2).sum(axis=2))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("rows", [1, 5, 23, 1024])
@pytest.mark.parametrize("members", [1, 6, 31])
def test_nearest_distance(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, rows: int, members: int
) -> None:
    monkeypatch.setattr(neighbours, "ROWS", rows)
    queries, bank = cloud(rng, 23), cloud(rng, members)
    expected = brute_force(queries, bank).min(axis=1)
    result = nearest_distance(queries, bank)
    assert result.shape == (23,)
    np.testing.assert_allclose(result, expected, rtol=1e-4)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("rows", [1, 5, 1024])
@pytest.mark.parametrize("count", [1, 2, 9, 31, 100])  # more than a block holds, than the bank
def test_nearest_members(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, rows: int, count: int
) -> None:
    monkeypatch.setattr(neighbours, "ROWS", rows)
    queries, bank = cloud(rng, 23), cloud(rng, 31)
    squared = brute_force(queries, bank)
    order = squared.argsort(axis=1)[:, :count]
    distances, members = nearest_members(queries, bank, count)
    assert members.dtype == torch.int64
    np.testing.assert_array_equal(members, order)
    np.testing.assert_allclose(distances, np.take_along_axis(squared, order, axis=1), rtol=1e-4)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("count", [1, 3, 4, 8, 12])
def test_ties(count: int) -> None:
    # Four copies of three points: whichever copies are given, each is given once.
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 9.0]])
    bank = points.repeat(4, 1)
    distances, members = nearest_members(points, bank, count)
    squared = brute_force(points, bank)
    np.testing.assert_array_equal(distances, np.sort(squared, axis=1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(squared, members.numpy(), axis=1), distances)
    assert all(len(set(row)) == count for row in members.tolist())
    assert (nearest_distance(points, bank) == 0).all()


@pytest.mark.usefixtures("block")
def test_far_from_the_origin(rng: np.random.Generator) -> None:
    # Rounding makes the smallest of such distances negative, and their roots nan.
    far = cloud(rng, 23) + 1000
    assert (nearest_distance(far, far) >= 0).all()
    distances, _ = nearest_members(far, far, 5)
    assert (distances >= 0).all()
    assert (distances.diff(dim=1) >= 0).all()


def test_inputs_stay_as_they_were(rng: np.random.Generator) -> None:
    queries, bank = cloud(rng, 5), cloud(rng, 6)
    copies = queries.clone(), bank.clone()
    nearest_distance(queries, bank)
    nearest_members(queries, bank, 2)
    assert torch.equal(queries, copies[0])
    assert torch.equal(bank, copies[1])


def test_no_queries(rng: np.random.Generator) -> None:
    none, bank = cloud(rng, 0), cloud(rng, 6)
    assert nearest_distance(none, bank).shape == (0,)
    assert [result.shape for result in nearest_members(none, bank, 2)] == [(0, 2), (0, 2)]


def test_empty_bank(rng: np.random.Generator) -> None:
    queries, nothing = cloud(rng, 5), cloud(rng, 0)
    with pytest.raises(ValueError, match="empty bank"):
        nearest_distance(queries, nothing)
    with pytest.raises(ValueError, match="empty bank"):
        nearest_members(queries, nothing, 1)


class Largest(torch.overrides.TorchFunctionMode):
    """Notes the largest tensor that any operation returns, views of the inputs aside."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.storages = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in self.storages:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("queries", [1, 300, 3000])
@pytest.mark.parametrize("width", [3, 40])
def test_memory_is_bounded(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, queries: int, width: int
) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 4000)
    monkeypatch.setattr(neighbours, "ROWS", 100)
    asked, bank = cloud(rng, queries, width), cloud(rng, 5000, width)
    allowed = max(4000, 100 * (width + 1), 4 * queries)  # a block, the rows' copy, the results
    with Largest(asked, bank) as one:
        nearest_distance(asked, bank)
    with Largest(asked, bank) as four:
        nearest_members(asked, bank, 4)
    assert 0 < one.elements <= allowed
    assert 0 < four.elements <= allowed
