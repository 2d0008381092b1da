"""AUPIMO against exact oracles, the packages that approximate it, and by hand."""

import math

import numpy as np
import pytest

from visionad_metrics import Samples, aupimo
from visionad_metrics.catalogue.aupimo import contract

BOUNDS = {"1e-5_1e-4": (1e-5, 1e-4), "1e-3_1e-2": (1e-3, 1e-2), "1e-2_3e-1": (1e-2, 0.3)}


@pytest.mark.parametrize("bounds", BOUNDS)
def test_agrees_with_the_oracles(oracle_case, bounds):
    result = aupimo(oracle_case.maps, oracle_case.masks, *BOUNDS[bounds])
    exact = oracle_case.reference[f"aupimo_{bounds}.own_exact"]
    if "error" in exact or not oracle_case.labels.any():
        assert math.isnan(result.value)
        assert result.reason
        return
    assert result.value == pytest.approx(exact["mean_anomalous"], abs=1e-9)
    assert result.details["per_image"] == pytest.approx(exact["per_anomalous_image"], abs=1e-9)


def test_near_the_packages_where_these_are_accurate(oracle_case):
    """At wide bounds 300,000 linear thresholds are many enough, unless scores are tied."""
    peer = oracle_case.reference["aupimo_1e-2_3e-1.anomalib_300k"]
    if "error" in peer or np.unique(oracle_case.maps).size < 10_000:
        pytest.skip("the packages refuse this case, or have too few pixels to be accurate")
    result = aupimo(oracle_case.maps, oracle_case.masks, 1e-2, 0.3)
    assert result.value == pytest.approx(peer["mean_anomalous"], abs=1e-3)


def test_by_hand():
    """One good image of 10 pixels 0..9; a mask of two pixels at 9.5 and 7.5.

    Rates are 0.1 at 9, 0.2 at 8, 0.3 at 7. The pixel at 9.5 counts from 0.1 on; the other is
    passed between 8 and 7, a straight line over log rate from 0.2 to 0.3. Recall is 1/2 from 0.1
    to 0.2, then rises to 1 at 0.3. Area over log rate: 1/2 ln 2 + 3/4 ln 1.5, over ln 3.
    """
    maps = np.zeros((2, 2, 5))
    maps[0].flat = np.arange(10)
    maps[1, 0, :2] = 9.5, 7.5
    masks = np.zeros(maps.shape, bool)
    masks[1, 0, :2] = True
    expected = (math.log(2) / 2 + 0.75 * math.log(1.5)) / math.log(3)
    result = aupimo(maps, masks, 0.1, 0.3)
    assert result.value == pytest.approx(expected, abs=1e-12)
    assert result.details["images"] == [1]
    assert result.details["good_images"] == 1


@pytest.fixture
def masks():
    masks = np.zeros((6, 30, 40), bool)
    masks[2, 3:9, 4:20] = masks[5, 20:22, 1:3] = True
    return masks


@pytest.fixture
def maps(rng, masks):
    return (rng.random(masks.shape) + masks / 2).round(2)


@pytest.mark.parametrize("block_pixels", [1, 2 * 1200, 10**9])
def test_blocks_do_not_show(maps, masks, block_pixels):
    expected = aupimo(maps, masks, 0.01, 0.2)
    samples = Samples(maps, masks, block_pixels=block_pixels)
    result = contract(samples, 0.01, 0.2)
    assert result.value == expected.value
    assert 0.01 < result.value < 0.99


def test_defective_images_do_not_count_as_normal(maps, masks):
    """High scores beside the mask of a defective image are no false positives here."""
    expected = aupimo(maps, masks, 0.01, 0.2).value
    maps[2, 20:] = 9
    assert aupimo(maps, masks, 0.01, 0.2).value == expected


def test_perfect_and_inverted(rng, masks):
    noise = rng.random(masks.shape)
    assert aupimo(noise + 2 * masks, masks, 1e-3, 0.1).value == 1
    assert aupimo(noise - 2 * masks, masks, 1e-3, 0.1).value == 0


def test_ranks_alone_decide(maps, masks):
    expected = aupimo(maps, masks, 0.01, 0.2).value
    assert aupimo(np.exp(5 * maps), masks, 0.01, 0.2).value == expected


def test_curve_is_the_mean_over_images(maps, masks):
    result = aupimo(maps, masks, 0.01, 0.2)
    rates, recall = result.curve["fpr"], result.curve["recall"]
    assert rates[[0, -1]] == pytest.approx([0.01, 0.2])
    area = np.trapezoid(recall, np.log(rates)) / np.log(20)
    assert area == pytest.approx(result.value, abs=2e-3)


@pytest.mark.parametrize(
    ("which", "reason"), [("good", "no good image"), ("bad", "no anomalous pixel")]
)
def test_undefined_without_both_kinds(maps, masks, which, reason):
    keep = masks.any(axis=(1, 2)) == (which == "good")
    assert aupimo(maps[keep], masks[keep]).reason == reason


def test_undefined_where_too_few_pixels_reach_the_lower_bound(maps, masks):
    assert "above the lower bound 1e-05" in aupimo(maps, masks).reason


@pytest.mark.parametrize(
    ("bounds", "message"),
    [((0, 0.1), "lower must be above 0"), ((0.1, 2), "upper must be"), ((0.2, 0.1), "below upper")],
)
def test_bounds_are_checked(maps, masks, bounds, message):
    with pytest.raises(ValueError, match=message):
        aupimo(maps, masks, *bounds)
