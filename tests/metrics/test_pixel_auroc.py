"""Pixel AUROC against scikit-learn and its own properties."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from visionad_metrics import pixel_auroc


@pytest.fixture
def masks(rng):
    """Two good images among five, H != W."""
    masks = rng.random((5, 12, 20)) < 0.2
    masks[[0, 3]] = False
    return masks


@pytest.fixture
def maps(rng, masks):
    """Maps on a coarse grid, so that many pixels are tied."""
    return (rng.normal(size=masks.shape) + masks).round(1)


def test_agrees_with_scikit_learn_on_ties(maps, masks):
    assert np.unique(maps).size < maps.size / 10
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert pixel_auroc(maps, masks).value == pytest.approx(expected, abs=1e-12)


def test_agrees_with_the_oracles(oracle_case):
    expected = oracle_case.reference["pixel_auroc.sklearn"]
    result = pixel_auroc(oracle_case.maps, oracle_case.masks)
    assert result.value == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert bool(result.reason) == math.isnan(expected)


def test_pixels_of_good_images_count(maps, masks):
    defective = masks.any(axis=(1, 2))
    maps[~defective] += 1
    assert pixel_auroc(maps, masks).value < pixel_auroc(maps[defective], masks[defective]).value


def test_ranks_alone_decide(maps, masks):
    expected = pixel_auroc(maps, masks).value
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape)
    rank_preserving = [ranks, ranks**3 - 10**9, np.exp2(ranks), ranks.astype(np.float16), maps * 2]
    assert [pixel_auroc(m, masks).value for m in rank_preserving] == [expected] * 5


def test_an_outlier_changes_only_its_own_rank(maps, masks):
    highest = np.unravel_index(maps.argmax(), maps.shape)
    maps[highest] += 1  # now the only one at the top
    expected = pixel_auroc(maps, masks).value
    maps[highest] = 1e30
    assert pixel_auroc(maps, masks).value == expected


def test_flipped_maps_are_not_flipped_back(maps, masks):
    value = pixel_auroc(maps, masks).value
    assert value > 0.6
    assert pixel_auroc(-maps, masks).value == pytest.approx(1 - value, abs=1e-15)


def test_float64_differences_count(masks):
    maps = 1.0 + masks * 1e-15
    assert np.unique(maps.astype(np.float32)).size == 1
    assert pixel_auroc(maps, masks).value == 1.0


def test_constant_maps_are_no_better_than_chance(masks):
    assert pixel_auroc(np.full(masks.shape, 7), masks).value == 0.5


def test_curve_and_details(maps, masks):
    result = pixel_auroc(maps, masks)
    assert np.trapezoid(result.curve["tpr"], result.curve["fpr"]) == pytest.approx(result.value)
    anomalous = int(masks.sum())
    assert result.details == {"normal_pixels": 1200 - anomalous, "anomalous_pixels": anomalous}


def test_curve_of_many_distinct_pixels_is_thinned(rng):
    masks = rng.random((2, 100, 100)) < 0.3
    result = pixel_auroc(rng.normal(size=masks.shape) + masks, masks)
    assert 500 < len(result.curve["fpr"]) <= 1000
    assert np.trapezoid(result.curve["tpr"], result.curve["fpr"]) == pytest.approx(
        result.value, abs=1e-4
    )


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (np.zeros((2, 3, 4)), "no anomalous pixel"),
        (np.ones((2, 3, 4)), "no normal pixel"),
        (np.zeros((0, 3, 4)), "no anomalous pixel"),
    ],
)
def test_undefined_without_both_kinds(masks, reason):
    result = pixel_auroc(np.ones(masks.shape), masks)
    assert math.isnan(result.value)
    assert result.reason == reason


def test_bad_input_is_named(maps, masks):
    with pytest.raises(ValueError, match="masks must be bool or 0/1, got the value 255; binarise"):
        pixel_auroc(maps, masks * np.uint8(255))
    with pytest.raises(ValueError, match=r"maps must have shape \(N, H, W\), got \(5, 1, 12, 20\)"):
        pixel_auroc(maps[:, None], masks)
    with pytest.raises(ValueError, match="maps and masks must have the same shape"):
        pixel_auroc(maps, masks[:, :-1])
    with pytest.raises(TypeError, match="maps must be integers or floats, got dtype bool"):
        pixel_auroc(masks, masks)  # as when the arguments are swapped
    maps[4, 11, 19] = math.inf
    with pytest.raises(ValueError, match=r"1 of 1200 .* the first at \(4, 11, 19\)"):
        pixel_auroc(maps, masks)
