"""AUPRO against MVTec's official code, a plain re-statement of it, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from visionad_metrics import aupro


def plain_aupro(maps, masks, limit):
    """MVTec's definition in so many words: threshold by threshold, on whole images."""
    regions = []
    for image, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(image, labels == number + 1) for number in range(count)]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        fpr.append((found & ~masks).sum() / (~masks).sum())
        pro.append(np.mean([found[image][region].mean() for image, region in regions]))
    before = [place for place, rate in enumerate(fpr) if rate <= limit]
    x, y = list(np.array(fpr)[before]), list(np.array(pro)[before])
    if x[-1] < limit:
        after = before[-1] + 1
        slope = (pro[after] - y[-1]) / (fpr[after] - x[-1])
        y.append(y[-1] + slope * (limit - x[-1]))
        x.append(limit)
    return np.trapezoid(y, x) / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_agrees_with_the_official_code(oracle_case, limit):
    result = aupro(oracle_case.maps, oracle_case.masks, limit)
    if not oracle_case.masks.any():  # the official code answers as if maps were constant
        assert math.isnan(result.value)
        assert result.reason == "no anomalous pixel"
        return
    expected = oracle_case.reference[f"aupro_{limit}.official"]
    assert result.value == pytest.approx(expected, abs=1e-6)
    # The exact figure: the official code keeps false positive rates in float32.
    exact = oracle_case.reference[f"aupro_{limit}.own_8conn"]
    assert result.value == pytest.approx(exact, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(
    arrays(int, (3, 5, 6), elements=st.integers(0, 5)),
    arrays(bool, (3, 5, 6), elements=st.booleans()),
    st.sampled_from([0.05, 0.21, 0.3, 0.5, 1.0]),
)
def test_agrees_with_the_definition(maps, masks, limit):
    result = aupro(maps, masks, limit)
    if masks.all() or not masks.any():
        assert math.isnan(result.value)
    else:
        assert result.value == pytest.approx(plain_aupro(maps, masks, limit), abs=1e-12)


def test_by_hand():
    """Regions of 1 and of 3 pixels among 10 normal ones.

    Descending: 9 is the small region (PRO 1/2); 8 and 7 are normal (rate 0.2); 6 is a third of
    the large region (PRO 1/2 + 1/6 = 2/3); 5 is normal (0.3); the rest comes later.
    Up to 0.3: 0.2 * 1/2 + 0.1 * 2/3 = 1/6; over 0.3: 5/9.
    """
    maps = np.array([[[9, 0, 8, 7, 0, 5, 0], [0, 0, 0, 0, 6, 1, 1]]])
    masks = np.zeros((1, 2, 7), bool)
    masks[0, 0, 0] = masks[0, 1, 4:7] = True
    assert aupro(maps, masks, 0.3).value == pytest.approx(5 / 9, abs=1e-12)


def test_each_region_counts_the_same():
    """A region found first adds 1 / R, whether it has 1 pixel or 100."""
    masks = np.zeros((1, 20, 30), bool)
    masks[0, 2:12, 2:12] = masks[0, 15, 25] = True
    for top, left in ((2, 2), (15, 25)):
        maps = np.zeros(masks.shape)
        maps[0, top : top + 10, left : left + 10][masks[0, top : top + 10, left : left + 10]] = 1
        # The found region is at rate 0 already; the other and all normal pixels tie at 0, so the
        # curve goes straight from (0, 1/2) to (1, 1): at 0.3 it has reached 0.65.
        assert aupro(maps, masks, 0.3).value == pytest.approx((0.5 + 0.65) / 2, abs=1e-12)


def test_regions_add_up(rng):
    """The mean over single regions, each with the other's pixels left out, is the whole."""
    masks = np.zeros((2, 12, 12), bool)
    masks[0, 1:4, 1:9] = masks[1, 6:11, 2:5] = True
    maps = rng.random(masks.shape)
    low = maps.min() - 1
    single = []
    for keep in (0, 1):
        # The other region becomes normal but never positive below the limit: same counts of false
        # positives; the rates differ by the known change of the denominator.
        own, hidden = np.zeros_like(masks), np.where(masks, low, maps)
        own[keep] = masks[keep]
        hidden[own] = maps[own]
        ratio = (~masks).sum() / (~own).sum()
        single.append(aupro(hidden, own, 0.3 * ratio).value)
    assert aupro(maps, masks, 0.3).value == pytest.approx(np.mean(single), abs=1e-12)


def test_a_mask_over_the_whole_image_is_a_region(rng):
    """Labelling that takes the first label for the background loses it."""
    masks = np.zeros((2, 8, 8), bool)
    masks[0] = True
    maps = rng.random(masks.shape)
    result = aupro(maps, masks)
    assert result.details["regions"] == 1
    assert result.value == pytest.approx(plain_aupro(maps, masks, 0.3), abs=1e-12)


def test_constant_maps_get_half_the_limit(rng):
    masks = rng.random((2, 9, 9)) < 0.3
    assert aupro(np.full(masks.shape, 3), masks, 0.3).value == pytest.approx(0.15, abs=1e-12)


def test_one_outlier_changes_nothing_but_its_rank(rng):
    masks = np.zeros((3, 20, 20), bool)
    masks[:2, 5:10, 5:10] = True
    maps = rng.random(masks.shape) + masks
    highest = np.unravel_index(maps.argmax(), maps.shape)
    expected = aupro(maps, masks).value
    maps[highest] = 1e30
    assert aupro(maps, masks).value == expected


def test_float64_differences_count():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 1:3, 1:3] = True
    assert aupro(1.0 + masks * 1e-15, masks).value == pytest.approx(1, abs=1e-12)


def test_curve_and_details(rng):
    masks = np.zeros((4, 16, 16), bool)
    masks[:2, 4:8, 4:8] = True
    result = aupro(rng.random(masks.shape) + masks, masks, 0.3)
    fpr, pro = result.curve["fpr"], result.curve["pro"]
    inside = fpr <= 0.3
    x, y = np.append(fpr[inside], 0.3), np.append(pro[inside], np.interp(0.3, fpr, pro))
    assert np.trapezoid(y, x) / 0.3 == pytest.approx(result.value, abs=1e-12)
    assert result.details == {"regions": 2, "normal_pixels": 4 * 256 - 32}


@pytest.mark.parametrize("limit", [0, -0.1, 1.01, math.nan])
def test_the_limit_is_a_rate(limit):
    with pytest.raises(ValueError, match="limit must be above 0 and at most 1"):
        aupro(np.zeros((1, 2, 2)), np.eye(2)[None], limit)


@pytest.mark.parametrize("limit", ["0.3", None, True])
def test_the_limit_is_a_number(limit):
    with pytest.raises(TypeError, match="limit must be a number"):
        aupro(np.zeros((1, 2, 2)), np.eye(2)[None], limit)


def test_undefined_without_normal_pixels():
    assert aupro(np.zeros((1, 2, 2)), np.ones((1, 2, 2))).reason == "no normal pixel"
