"""The rank machinery against its definition and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from visionad_metrics.ranking import auroc, counts_above, roc_curve

few_levels = st.lists(st.integers(0, 6), min_size=1, max_size=40)


def as_labelled(normal, anomalous):
    labels = np.r_[np.zeros(len(normal), int), np.ones(len(anomalous), int)]
    return labels, np.concatenate([normal, anomalous])


def test_counts_above_by_hand_in_the_given_order():
    above, at_or_above = counts_above(np.array([1.0, 3, 2, 2]), np.array([2.0, 9, 0, 3]))
    assert above.tolist() == [1, 0, 4, 0]
    assert at_or_above.tolist() == [3, 0, 4, 1]


@settings(max_examples=60, deadline=None)
@given(few_levels, few_levels)
def test_auroc_is_the_share_of_pairs_in_order(normal, anomalous):
    n, a = np.array(normal), np.array(anomalous)[:, None]
    pairs = (a > n) + (a == n) / 2
    assert auroc(n, a[:, 0]) == pytest.approx(pairs.mean(), abs=1e-15)
    assert auroc(n, a[:, 0]) == pytest.approx(roc_auc_score(*as_labelled(n, a[:, 0])), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(few_levels, few_levels)
def test_few_distinct_scores_give_the_whole_curve(normal, anomalous):
    fpr, tpr = roc_curve(np.array(normal), np.array(anomalous))
    expected = sklearn_roc_curve(*as_labelled(normal, anomalous), drop_intermediate=False)
    np.testing.assert_allclose([fpr, tpr], expected[:2], rtol=0, atol=1e-15)


def test_area_below_the_whole_curve_is_the_auroc(rng):
    normal, anomalous = rng.integers(0, 300, 5000), rng.integers(100, 400, 700)
    fpr, tpr = roc_curve(normal, anomalous)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auroc(normal, anomalous), abs=1e-12)


def test_a_rare_score_is_not_lost_from_the_whole_curve():
    fpr, tpr = roc_curve(np.repeat([0, 1, 2, 3], [9000, 1, 1, 9000]), np.array([1]))
    assert tpr.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(fpr * 18002, [0, 9000, 9001, 9002, 18002])


@pytest.mark.parametrize("max_points", [2, 3, 4])
def test_the_shortest_curves_still_end_at_one(max_points):
    low, high = np.arange(50), np.arange(50) + 100
    for normal, anomalous in [(low, high), (high, low)]:
        fpr, tpr = roc_curve(normal, anomalous, max_points)
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize("max_points", [2, 3, 10, 101, 1000])
def test_thinning_keeps_points_of_the_whole_curve(rng, max_points):
    normal, anomalous = rng.normal(size=20_000).round(4), rng.normal(1, size=3000).round(4)
    fpr, tpr = roc_curve(normal, anomalous, max_points)
    whole = sklearn_roc_curve(*as_labelled(normal, anomalous), drop_intermediate=False)
    points, thinned = (
        set(zip((f * normal.size).round(), (t * anomalous.size).round(), strict=True))
        for f, t in (whole[:2], (fpr, tpr))
    )
    assert thinned <= points
    assert max_points // 2 <= len(fpr) <= max_points
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()


def test_thinned_points_are_spread_over_both_rates(rng):
    fpr, tpr = roc_curve(rng.normal(size=50_000), rng.normal(3, size=50_000), max_points=101)
    assert np.diff(fpr).max() < 0.03
    assert np.diff(tpr).max() < 0.03


def test_a_tie_of_everything_is_one_straight_segment():
    fpr, tpr = roc_curve(np.zeros(50), np.zeros(5))
    assert fpr.tolist() == tpr.tolist() == [0, 1]
    assert auroc(np.zeros(50), np.zeros(5)) == 0.5


def test_order_of_the_scores_does_not_matter(rng):
    normal, anomalous = rng.normal(size=100), rng.normal(size=30)
    backwards = np.sort(normal)[::-1], np.sort(anomalous)[::-1]
    assert auroc(normal, anomalous) == auroc(*backwards)
    np.testing.assert_array_equal(roc_curve(normal, anomalous), roc_curve(*backwards))


def test_arguments_are_not_changed(rng):
    normal, anomalous = rng.normal(size=100), rng.normal(size=30)
    before = normal.copy(), anomalous.copy()
    auroc(normal, anomalous)
    roc_curve(normal, anomalous)
    np.testing.assert_array_equal(normal, before[0])
    np.testing.assert_array_equal(anomalous, before[1])


@pytest.mark.parametrize("function", [auroc, roc_curve])
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0)])
def test_empty_scores_are_refused(function, sizes):
    with pytest.raises(ValueError, match=f"got {sizes[0]} normal and {sizes[1]} anomalous"):
        function(np.zeros(sizes[0]), np.zeros(sizes[1]))


def test_a_curve_needs_two_points():
    with pytest.raises(ValueError, match="max_points must be at least 2, got 1"):
        roc_curve(np.zeros(3), np.ones(3), max_points=1)
