"""Tests by ranks: against scipy, scikit-posthocs, published tables and ways that are counted out."""

import itertools
import math

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats

from visionad_metrics import ranks


def table(rng: np.random.Generator, n: int = 12, k: int = 6, digits: int | None = None):
    values = rng.normal(size=(n, k)) + np.linspace(0.8, 0, k)
    return values if digits is None else values.round(digits)


def test_the_highest_value_has_rank_one_and_ties_are_averaged():
    values = [[0.9, 0.7, 0.9, 0.1], [0.1, 0.2, 0.3, 0.4]]
    assert ranks.ranks(values).tolist() == [[1.5, 3, 1.5, 4], [4, 3, 2, 1]]
    assert ranks.wins(values).tolist() == [1, 0, 1, 1]
    almost = [[0.9, 0.9 + 1e-15, 0.1]]
    assert ranks.ranks(almost).tolist() == [[1.5, 1.5, 3]]


def test_undefined_values_are_refused():
    with pytest.raises(ValueError, match="finite"):
        ranks.ranks([[0.1, math.nan]])


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "ties"])
def test_friedman_is_scipys(rng, digits):
    values = table(rng, digits=digits)
    expected = stats.friedmanchisquare(*values.T)
    found = ranks.friedman(values)
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.categories, found.reason) == (12, None)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.eye(3)[:, :2], "2 algorithms: the Friedman test compares three or more"),
        (np.ones((3, 1)), "1 algorithm: the Friedman test compares three or more"),
        (np.arange(4)[None], "one category: nothing to rank over"),
        (np.ones((5, 4)), "all algorithms are equal in every category"),
    ],
)
def test_friedman_says_why_it_is_undefined(values, reason):
    found = ranks.friedman(values)
    assert math.isnan(found.statistic) and math.isnan(found.p)
    assert found.reason == reason


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "ties"])
def test_nemenyi_is_that_of_scikit_posthocs(rng, digits):
    values = table(rng, digits=digits)
    found = ranks.nemenyi(values)
    assert found == pytest.approx(
        scikit_posthocs.posthoc_nemenyi_friedman(values).to_numpy(), abs=1e-9
    )
    assert np.isnan(ranks.nemenyi(values[:1])).all()
    assert np.isnan(ranks.nemenyi(values[:, :1])).all()


def test_critical_difference_is_that_of_demsars_table():
    """Table 5 a of Demsar (2006): q at 0.05 is 1.960 for 2 algorithms, 2.728 for 5, 3.164 for 10."""
    for k, q in ((2, 1.960), (5, 2.728), (10, 3.164)):
        expected = q * math.sqrt(k * (k + 1) / (6 * 15))
        assert ranks.critical_difference(k, 15, 0.05) == pytest.approx(expected, abs=2e-3)
    assert math.isnan(ranks.critical_difference(1, 15, 0.05))
    assert math.isnan(ranks.critical_difference(5, 1, 0.05))


def test_two_are_told_apart_by_nemenyi_where_the_critical_difference_is_passed(rng):
    values = table(rng, n=20)
    mean = ranks.ranks(values).mean(axis=0)
    apart = np.abs(mean[:, None] - mean) > ranks.critical_difference(6, 20, 0.05)
    assert (apart == (ranks.nemenyi(values) < 0.05)).all()
    assert apart.any() and not apart.all()


def test_wilcoxon_is_scipys_exact_one(rng):
    values = table(rng)
    found = ranks.wilcoxon(values)
    for first, second in itertools.combinations(range(6), 2):
        expected = stats.wilcoxon(values[:, first], values[:, second], method="exact").pvalue
        assert found[first, second] == found[second, first] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(np.diag(found)).all()


def test_wilcoxon_counts_all_signs_where_differences_tie(rng):
    for _ in range(20):
        differences = rng.integers(1, 4, 8) * rng.choice([-1, 1], 8)
        size = stats.rankdata(np.abs(differences))
        sums = [size[list(signs)].sum() for signs in itertools.product([False, True], repeat=8)]
        positive = size[differences > 0].sum()
        low, high = np.mean(np.array(sums) <= positive), np.mean(np.array(sums) >= positive)
        expected = min(1, 2 * min(low, high))
        assert ranks.signed_rank(differences.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_wilcoxon_leaves_equal_categories_out():
    values = np.array([[0.5, 0.5], [0.6, 0.5], [0.8, 0.6], [0.9, 0.6]])
    assert ranks.wilcoxon(values)[0, 1] == pytest.approx(0.25)
    assert np.isnan(ranks.wilcoxon(np.ones((4, 2)))).all()
    assert np.isnan(ranks.wilcoxon(values[1:2])).all()


def test_the_least_p_value_is_reached_when_one_wins_everywhere():
    for n in (2, 3, 6, 15):
        values = np.stack([np.arange(n) + 1.0, np.zeros(n)], axis=1)
        assert ranks.wilcoxon(values)[0, 1] == pytest.approx(ranks.smallest_wilcoxon(n))
    assert ranks.smallest_wilcoxon(3) == 0.25
    assert math.isnan(ranks.smallest_wilcoxon(1))


def test_holm_is_that_of_scikit_posthocs(rng):
    values = table(rng, n=15)
    pairs = np.triu_indices(6, 1)
    found = ranks.holm(ranks.wilcoxon(values)[pairs])
    expected = scikit_posthocs.posthoc_wilcoxon(list(values.T), p_adjust="holm").to_numpy()[pairs]
    assert found == pytest.approx(expected, abs=1e-9)


def test_holm_by_hand_and_with_an_undefined_one():
    assert ranks.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    corrected = ranks.holm([0.04, math.nan, 0.01])
    assert corrected[[0, 2]] == pytest.approx([0.08, 0.03])
    assert math.isnan(corrected[1])
    assert ranks.holm([]).shape == (0,)


@pytest.mark.parametrize(
    ("mean_ranks", "difference", "expected"),
    [
        ([1, 2, 3, 4], 1.5, [[0, 1], [1, 2], [2, 3]]),
        ([1, 2, 3, 4], 2.5, [[0, 1, 2], [1, 2, 3]]),
        ([4, 3, 2, 1], 10, [[3, 2, 1, 0]]),
        ([1, 1.2, 4, 5], 0.5, [[0, 1]]),
        ([1, 2], 1, []),  # as far apart as the critical difference is told apart
        ([1, 1, 3], 0.5, [[0, 1]]),
        ([1], 2, []),
    ],
)
def test_groups_are_the_largest_runs_that_are_not_told_apart(mean_ranks, difference, expected):
    assert ranks.groups(mean_ranks, difference) == expected


def test_false_rejections_are_as_rare_as_promised(rng):
    """Where all algorithms are equal, Holm and Nemenyi reject anything in at most 5 % of runs."""
    pairs = np.triu_indices(4, 1)
    rejected = np.zeros(2)
    for _ in range(300):
        values = rng.normal(size=(15, 4)) + rng.normal(size=(15, 1))
        rejected += (
            ranks.holm(ranks.wilcoxon(values)[pairs]).min() <= 0.05,
            ranks.nemenyi(values)[pairs].min() <= 0.05,
        )
    assert (rejected / 300 <= 0.08).all()
