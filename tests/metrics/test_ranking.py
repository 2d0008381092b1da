"""The rank machinery against its definition and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from visionad_metrics.ranking import (
    area,
    auroc,
    average_precision,
    curve,
    f1max,
    precision_recall,
    rank,
    rank_pixels,
)
from visionad_metrics.samples import Samples

few_levels = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(np.array)


def as_labelled(normal, anomalous):
    labels = np.r_[np.zeros(len(normal), int), np.ones(len(anomalous), int)]
    return labels, np.concatenate([normal, anomalous])


def even_gains(ranking):
    return ranking.sizes / ranking.anomalous


def test_ranks_by_hand():
    ranking = rank(np.array([1.0, 3, 2, 2]), np.array([2.0, 9, 0, 2]))
    assert ranking.scores.tolist() == [9, 2, 0]
    assert ranking.above.tolist() == [0, 1, 4]
    assert ranking.at_or_above.tolist() == [0, 3, 4]
    assert ranking.sizes.tolist() == [1, 2, 1]
    assert ranking.hits.tolist() == [1, 3, 4]
    assert sorted(ranking.order[1:3].tolist()) == [0, 3]
    assert (ranking.normal, ranking.anomalous) == (4, 4)
    assert ranking.group_sums(np.array([0.1, 0.2, 0.3, 0.4])).tolist() == [0.2, 0.5, 0.3]


@settings(max_examples=60, deadline=None)
@given(few_levels, few_levels)
def test_counts_are_those_of_all_pairs(normal, anomalous):
    ranking = rank(normal, anomalous)
    assert ranking.above.tolist() == [(normal > score).sum() for score in ranking.scores]
    assert ranking.at_or_above.tolist() == [(normal >= score).sum() for score in ranking.scores]
    assert ranking.hits.tolist() == [(anomalous >= score).sum() for score in ranking.scores]


@settings(max_examples=60, deadline=None)
@given(few_levels, few_levels)
def test_auroc_is_the_share_of_pairs_in_order(normal, anomalous):
    n, a = normal, anomalous[:, None]
    pairs = (a > n) + (a == n) / 2
    value = auroc(rank(normal, anomalous))
    assert value == pytest.approx(pairs.mean(), abs=1e-15)
    assert value == pytest.approx(roc_auc_score(*as_labelled(normal, anomalous)), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(few_levels, few_levels)
def test_average_precision_and_f1_agree_with_scikit_learn(normal, anomalous):
    ranking = rank(normal, anomalous)
    labels, scores = as_labelled(normal, anomalous)
    assert average_precision(ranking) == pytest.approx(average_precision_score(labels, scores))
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-300))[:-1]
    value, threshold = f1max(ranking)
    assert value == pytest.approx(f1.max())
    assert threshold == thresholds[np.flatnonzero(f1 >= f1.max() - 1e-12)[0]]


@settings(max_examples=60, deadline=None)
@given(few_levels, few_levels, st.floats(0.01, 1))
def test_area_is_that_of_the_curve_cut_at_the_limit(normal, anomalous, limit):
    """The closed form per group against the trapezoids of the whole curve."""
    ranking = rank(normal, anomalous)
    fpr, tpr, _ = sklearn_roc_curve(*as_labelled(normal, anomalous), drop_intermediate=False)
    cut = np.append(fpr[fpr < limit], limit)
    # Where the curve rises vertically np.interp takes an end of the rise: the upper one is needed
    # only at the limit itself, and there the width is 0.
    heights = np.append(tpr[fpr < limit], np.interp(limit, fpr, tpr))
    at_limit = fpr == limit
    if at_limit.any():
        heights[-1] = tpr[at_limit].min()
    expected = np.trapezoid(heights, cut) / limit
    assert area(ranking, even_gains(ranking), limit) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(few_levels, few_levels)
def test_corners_are_all_that_the_roc_curve_needs(normal, anomalous):
    ranking = rank(normal, anomalous)
    fpr, tpr = curve(ranking, even_gains(ranking))
    whole = sklearn_roc_curve(*as_labelled(normal, anomalous), drop_intermediate=False)[:2]
    points = set(zip(*np.round(whole, 12), strict=True))
    assert set(zip(*np.round([fpr, tpr], 12), strict=True)) <= points
    assert np.trapezoid(tpr, fpr) == pytest.approx(np.trapezoid(whole[1], whole[0]), abs=1e-12)


@pytest.mark.parametrize("max_points", [2, 3, 10, 101, 1000])
@pytest.mark.parametrize("limit", [1.0, 0.1])
def test_thinning_keeps_points_of_the_whole_curve(rng, max_points, limit):
    ranking = rank(rng.normal(size=20_000).round(4), rng.normal(1, size=3000).round(4))
    gains = even_gains(ranking)
    whole = set(zip(*curve(ranking, gains, max_points=10**6), strict=True))
    fpr, tpr = curve(ranking, gains, limit, max_points)
    assert set(zip(fpr, tpr, strict=True)) <= whole
    assert max_points // 2 <= len(fpr) <= max_points < len(whole)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()


def test_thinned_points_are_spread_over_both_axes(rng):
    ranking = rank(rng.normal(size=50_000), rng.normal(1, size=50_000))
    fpr, tpr = curve(ranking, even_gains(ranking), max_points=101)
    assert np.diff(fpr).max() < 0.04
    assert np.diff(tpr).max() < 0.04


def test_a_lower_limit_has_more_of_the_points(rng):
    ranking = rank(rng.normal(size=50_000), rng.normal(size=50_000))
    counts = [
        (curve(ranking, even_gains(ranking), limit, 101)[0] <= 0.05).sum() for limit in (1, 0.05)
    ]
    assert counts[1] > 2 * counts[0]


def test_precision_recall_points(rng):
    normal, anomalous = rng.normal(size=3000).round(2), rng.normal(1, size=500).round(2)
    ranking = rank(normal, anomalous)
    recall, precision = precision_recall(ranking)
    for r, p, score in zip(recall, precision, ranking.scores, strict=True):
        right, wrong = (anomalous >= score).sum(), (normal >= score).sum()
        assert (r, p) == (right / 500, right / (right + wrong))
    few = precision_recall(ranking, max_points=20)
    assert len(few[0]) <= 20
    assert few[0][-1] == 1
    assert set(zip(*few, strict=True)) <= set(zip(recall, precision, strict=True))


def test_a_tie_of_everything_is_one_straight_segment():
    ranking = rank(np.zeros(50), np.zeros(5))
    fpr, tpr = curve(ranking, even_gains(ranking))
    assert fpr.tolist() == tpr.tolist() == [0, 1]
    assert auroc(ranking) == 0.5
    assert area(ranking, even_gains(ranking), 0.3) == pytest.approx(0.15, abs=1e-15)


def test_arguments_are_not_changed(rng):
    normal, anomalous = rng.normal(size=100), rng.normal(size=30)
    before = normal.copy(), anomalous.copy()
    rank(normal, anomalous)
    np.testing.assert_array_equal(normal, before[0])
    np.testing.assert_array_equal(anomalous, before[1])


class TestPixels:
    """Pixels are ranked in blocks, and the blocks do not show."""

    DTYPES = ("float16", "float32", "float64", ">f4", "uint8", "int16", "int64", "uint64")

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("block_pixels", [1, 70, 10**9])
    def test_equal_the_ranking_of_the_pixels_picked_out(self, rng, dtype, block_pixels):
        integers = np.issubdtype(np.dtype(dtype), np.integer)
        maps = (rng.random((7, 5, 6)) * (50 if integers else 1)).astype(dtype)
        masks = rng.random(maps.shape) < 0.2
        masks[3] = False
        if integers:  # an anomalous pixel at the lowest value there is, beside normal ones
            maps[0, 0, :4] = np.iinfo(np.dtype(dtype)).min
            masks[0, 0, :4] = True, False, True, False
        before = maps.copy()
        ranking = rank_pixels(Samples(maps, masks, block_pixels=block_pixels))
        expected = rank(maps[~masks], maps[masks])
        for name in ("scores", "starts", "above", "at_or_above"):
            np.testing.assert_array_equal(getattr(ranking, name), getattr(expected, name))
        assert ranking.normal == (~masks).sum()
        np.testing.assert_array_equal(maps[masks][ranking.order], np.sort(maps[masks])[::-1])
        np.testing.assert_array_equal(maps, before)

    def test_none_without_anomalous_pixels(self, rng):
        assert rank_pixels(Samples(rng.random((2, 3, 3)), np.zeros((2, 3, 3)))) is None
        assert rank_pixels(Samples(np.zeros((0, 3, 3)), np.zeros((0, 3, 3)))) is None

    def test_all_anomalous_leaves_no_normal(self, rng):
        assert rank_pixels(Samples(rng.random((2, 3, 3)), np.ones((2, 3, 3)))).normal == 0
