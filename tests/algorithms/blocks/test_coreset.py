"""The greedy coreset against the same rule, naively."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.blocks.coreset import coverage_radius, greedy_coreset, random_projection


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_coreset(features: np.ndarray, size: int, starts: np.ndarray) -> list[int]:
    """Farthest-first; the mean distance to the starts bounds all distances from above."""
    nearest = np.mean([np.linalg.norm(features - features[row], axis=1) for row in starts], axis=0)
    chosen: list[int] = []
    for _ in range(size):
        pick = max(
            (row for row in range(len(features)) if row not in chosen), key=nearest.__getitem__
        )
        chosen.append(pick)
        nearest = np.minimum(nearest, np.linalg.norm(features - features[pick], axis=1))
    return chosen


@pytest.mark.parametrize("pool", [1, 7, 60, 4096])  # of 300 rows: many rounds, few, one
@pytest.mark.parametrize(("size", "starts"), [(1, 10), (40, 10), (40, 1), (300, 10), (30, 500)])
def test_choice(rng: np.random.Generator, size: int, starts: int, pool: int) -> None:
    features = rng.normal(size=(300, 12)).astype(np.float32)
    rows = torch.randperm(300, generator=generator()).numpy()[:starts]
    expected = naive_coreset(features.astype(np.float64), size, rows)
    chosen = greedy_coreset(torch.from_numpy(features), size, starts, generator(), pool)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == expected


def test_blocks_of_rows_are_all_brought_up_to_date(rng: np.random.Generator) -> None:
    # 5000 rows in rounds of hundreds of picks are updated in several blocks.
    features = torch.from_numpy(rng.random((5000, 2)).astype(np.float32))
    one_round = greedy_coreset(features, 2500, 10, generator(), pool=5000)
    rounds = greedy_coreset(features, 2500, 10, generator(), pool=2000)
    # Roundings differ from round to round, so near ties may fall otherwise; the cover may not.
    radii = [coverage_radius(features, chosen) for chosen in (one_round, rounds)]
    assert radii[0] == pytest.approx(radii[1], rel=1e-3)


@pytest.mark.parametrize("pool", [1, 7, 4096])
def test_picks_are_distinct_among_duplicates(rng: np.random.Generator, pool: int) -> None:
    features = torch.from_numpy(rng.normal(size=(5, 8)).astype(np.float32)).repeat(20, 1)
    chosen = greedy_coreset(features, 60, 10, generator(), pool)
    assert len(set(chosen.tolist())) == 60
    # The five different points come first.
    assert {row % 5 for row in chosen[:5].tolist()} == set(range(5))


@pytest.mark.parametrize("pool", [1, 7, 4096])
def test_picks_are_distinct_where_rounding_is_large(pool: int) -> None:
    features = torch.full((50, 4), 1e4) + torch.rand(50, 4, generator=generator()) * 1e-2
    chosen = greedy_coreset(features, 50, 10, generator(), pool)
    assert sorted(chosen.tolist()) == list(range(50))


def test_covers_better_than_chance(rng: np.random.Generator) -> None:
    # Most rows in one dense cluster, few in a wide halo: a random subset misses the halo.
    features = rng.normal(size=(2000, 8)).astype(np.float32)
    features[:1900] *= 0.1
    tensor = torch.from_numpy(features)
    greedy = coverage_radius(tensor, greedy_coreset(tensor, 50, 10, generator()))
    chance = [
        coverage_radius(tensor, torch.randperm(2000, generator=generator(seed))[:50])
        for seed in range(5)
    ]
    assert greedy < 0.7 * min(chance)


def test_coverage_radius(rng: np.random.Generator) -> None:
    features = rng.normal(size=(30, 4))
    chosen = [3, 17, 5]
    expected = max(min(math.dist(row, features[pick]) for pick in chosen) for row in features)
    result = coverage_radius(torch.from_numpy(features), torch.tensor(chosen))
    assert result == pytest.approx(expected)
    assert coverage_radius(torch.from_numpy(features), torch.arange(30)) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("size", [0, -1, 21])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match="1 to 20 rows"):
        greedy_coreset(torch.rand(20, 3), size, 10, generator())


def test_seed_decides() -> None:
    features = torch.rand(300, 6, generator=generator(9))
    first, again, other = (greedy_coreset(features, 10, 1, generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("width", [5, 8])
def test_no_projection_of_narrow_features(width: int) -> None:
    features = torch.rand(10, width)
    drawn = generator()
    assert random_projection(features, 8, drawn) is features
    # Nothing is drawn either, so the starting points do not depend on it.
    assert torch.equal(drawn.get_state(), generator().get_state())


def test_projection_is_linear_and_bounded() -> None:
    identity = torch.eye(400)
    weights: Tensor = random_projection(identity, 64, generator())
    assert weights.shape == (400, 64)
    assert weights.abs().max() <= 1 / math.sqrt(400)
    assert float(weights.std()) == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)
    features = torch.rand(7, 400)
    torch.testing.assert_close(random_projection(features, 64, generator()), features @ weights)


def test_projection_keeps_relative_distances(rng: np.random.Generator) -> None:
    features = torch.from_numpy(rng.normal(size=(40, 1000)).astype(np.float32))
    features *= torch.linspace(0.2, 3, 40)[:, None]
    projected = random_projection(features, 128, generator())
    ratio = torch.pdist(projected) / torch.pdist(features)
    assert float(ratio.std() / ratio.mean()) < 0.1
