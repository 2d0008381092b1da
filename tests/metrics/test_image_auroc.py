"""Image AUROC against scikit-learn, MVTec's official code and its own properties."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from visionad_metrics import image_auroc


@pytest.fixture
def labels(rng):
    return rng.permutation(np.repeat([0, 1], [60, 40]))


@pytest.fixture
def scores(rng, labels):
    """Scores on a coarse grid, so that many are tied."""
    return (rng.normal(size=100) + labels).round(1)


def test_agrees_with_scikit_learn_on_ties(scores, labels):
    assert np.unique(scores).size < scores.size
    assert image_auroc(scores, labels).value == pytest.approx(
        roc_auc_score(labels, scores), abs=1e-12
    )


def test_agrees_with_the_oracles(oracle_case):
    expected = oracle_case.reference["image_auroc.sklearn"]
    result = image_auroc(oracle_case.scores, oracle_case.labels)
    assert result.value == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert bool(result.reason) == math.isnan(expected)
    # The official code reads no scores but maps, and divides by zero where it is undefined.
    official = oracle_case.reference.get("image_auroc.official", expected)
    if isinstance(official, dict):
        assert "ZeroDivisionError" in official["error"]
        official = math.nan
    assert result.value == pytest.approx(official, abs=1e-12, nan_ok=True)


def test_ranks_alone_decide(scores, labels):
    expected = image_auroc(scores, labels).value
    ranks = np.unique(scores, return_inverse=True)[1]
    rank_preserving = [
        ranks,
        ranks**3 - 10**9,
        np.exp2(ranks),
        ranks.astype(np.float16),
        scores * 2,
    ]
    assert [image_auroc(s, labels).value for s in rank_preserving] == [expected] * 5


def test_flipped_scores_are_not_flipped_back(scores, labels):
    value = image_auroc(scores, labels).value
    assert value > 0.6
    assert image_auroc(-scores, labels).value == pytest.approx(1 - value, abs=1e-15)


def test_float64_differences_count(labels):
    scores = 1.0 + labels * 1e-15
    assert np.unique(scores.astype(np.float32)).size == 1
    assert image_auroc(scores, labels).value == 1.0


def test_lists_and_bool_labels_will_do(scores, labels):
    expected = image_auroc(scores, labels).value
    assert image_auroc(scores.tolist(), labels.astype(bool).tolist()).value == expected


def test_curve_and_details(scores, labels):
    result = image_auroc(scores, labels)
    assert np.trapezoid(result.curve["tpr"], result.curve["fpr"]) == pytest.approx(result.value)
    assert result.details == {"good_images": 60, "defective_images": 40}


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([0, 0], "no defective image"), ([1, 1], "no good image"), ([], "no defective image")],
)
def test_undefined_without_both_kinds(labels, reason):
    result = image_auroc(np.arange(len(labels)), labels)
    assert math.isnan(result.value)
    assert result.reason == reason


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, math.nan], [0, 1], "scores must be finite"),
        ([0.1, 0.2], [0, 255], "labels must be bool or 0/1, got the value 255"),
        ([[0.1, 0.2]], [0, 1], r"scores must have shape \(N,\), got \(1, 2\)"),
        ([0.1, 0.2], [0, 1, 1], "scores and labels must have the same shape"),
        ([0.1, 0.2], [[0, 1]], r"labels must have shape \(N,\)"),
    ],
)
def test_bad_input_is_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        image_auroc(scores, labels)


def test_nan_scores_are_refused_even_where_undefined():
    with pytest.raises(ValueError, match="scores must be finite"):
        image_auroc([math.nan, 0.0], [0, 0])
