"""Average precision and F1-max of images and pixels against scikit-learn and the oracles."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from visionad_metrics import image_ap, image_f1max, pixel_ap, pixel_f1max

METRICS = {
    "image_ap": image_ap,
    "image_f1max": image_f1max,
    "pixel_ap": pixel_ap,
    "pixel_f1max": pixel_f1max,
}
every_metric = pytest.mark.parametrize("name", METRICS)


def arguments(name, maps, masks, scores, labels):
    return (scores, labels) if name.startswith("image") else (maps, masks)


@every_metric
def test_agrees_with_the_oracles(name, oracle_case):
    case = oracle_case
    result = METRICS[name](*arguments(name, case.maps, case.masks, case.scores, case.labels))
    if not case.labels.any():  # scikit-learn answers 0 and warns
        assert math.isnan(result.value)
        return
    assert result.value == pytest.approx(case.reference[f"{name}.sklearn"], abs=1e-12)
    threshold = case.reference.get(f"{name}_threshold.sklearn")
    if threshold is not None:
        assert result.details["threshold"] == threshold


@pytest.fixture
def maps(rng):
    return rng.integers(0, 9, (6, 7, 8)) / 8


@pytest.fixture
def masks(rng, maps):
    return (maps + rng.random(maps.shape) > 1.2) & (np.arange(6) < 4)[:, None, None]


@every_metric
def test_agrees_with_scikit_learn_on_ties(name, maps, masks, rng):
    labels, scores = masks.any(axis=(1, 2)), rng.integers(0, 3, 6)
    values, truth = arguments(name, maps.ravel(), masks.ravel(), scores, labels)
    if name.endswith("_ap"):
        expected = average_precision_score(truth, values)
    else:
        expected = max(f1_score(truth, values >= threshold) for threshold in np.unique(values))
    value = METRICS[name](*arguments(name, maps, masks, scores, labels)).value
    assert value == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand():
    """Descending: defective, good, defective; precision 1 and 2/3 where a defective one comes."""
    assert image_ap([3, 2, 1], [1, 0, 1]).value == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)


def test_steps_not_trapezoids():
    """All scores equal: precision is the share of defective images, 1/4, and not half of it more."""
    assert image_ap([5, 5, 5, 5], [0, 0, 0, 1]).value == 0.25


def test_f1max_by_hand():
    """At 2: both defective ones and one good: 2 * 2 / (3 + 2) = 0.8. At 3: 2 * 1 / (1 + 2)."""
    result = image_f1max([3, 2, 2, 1], [1, 1, 0, 0])
    assert result.value == pytest.approx(0.8, abs=1e-15)
    assert result.details == {"threshold": 2, "good_images": 2, "defective_images": 2}


def test_of_equal_f1_the_lowest_threshold_is_given():
    """At 4: 2 * 1 / (1 + 2) = 2/3. At 1: 2 * 2 / (4 + 2) = 2/3."""
    assert image_f1max([4, 3, 2, 1], [1, 0, 0, 1]).details["threshold"] == 1


@every_metric
def test_defined_without_good_images(name):
    maps = np.arange(8.0).reshape(2, 2, 2)
    result = METRICS[name](*arguments(name, maps, np.ones((2, 2, 2)), [1, 2], [1, 1]))
    assert result.value == 1
    assert result.reason is None


@every_metric
def test_undefined_without_defects(name):
    maps = np.zeros((2, 2, 2))
    result = METRICS[name](*arguments(name, maps, maps, [1, 2], [0, 0]))
    assert math.isnan(result.value)
    assert result.reason == f"no {'defective image' if 'image' in name else 'anomalous pixel'}"


@every_metric
def test_ranks_alone_decide(name, maps, masks, rng):
    labels, scores = masks.any(axis=(1, 2)), rng.integers(0, 3, 6)
    first = METRICS[name](*arguments(name, maps, masks, scores, labels)).value
    other = METRICS[name](*arguments(name, np.exp(9 * maps) - 50, masks, scores**3 - 9, labels))
    assert other.value == first


@every_metric
def test_curve_ends_at_full_recall(name, maps, masks, rng):
    labels, scores = masks.any(axis=(1, 2)), rng.random(6)
    curve = METRICS[name](*arguments(name, maps, masks, scores, labels)).curve
    assert curve["recall"][-1] == 1
    truth = arguments(name, masks, masks, labels, labels)[1]
    assert curve["precision"][-1] >= truth.mean()
