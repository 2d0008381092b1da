"""What must hold of every rank-based pixel metric, on arbitrary small maps."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from visionad_metrics import pixel_metrics

NAMES = {
    "pixel_auroc": {}, "pixel_ap": {}, "pixel_f1max": {},
    "aupro": {"limit": 0.3}, "aupro_005": {"metric": "aupro", "limit": 0.05},
    "aupro_1": {"metric": "aupro", "limit": 1.0}, "aupimo": {"lower": 0.1, "upper": 0.5}, "siou": {},
}  # fmt: skip
SHAPE = (4, 5, 6)
maps_of_few_levels = arrays(float, SHAPE, elements=st.integers(-3, 4).map(float))


@st.composite
def masks_with_a_good_image(draw):
    masks = draw(arrays(bool, SHAPE, elements=st.booleans()))
    masks[draw(st.integers(0, 3))] = False
    assume(masks.any())
    return masks


def values(maps, masks):
    return {name: result.value for name, result in pixel_metrics(maps, masks, NAMES).items()}


def same(first, second):
    return second == pytest.approx(first, abs=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(maps_of_few_levels, masks_with_a_good_image())
def test_bounds(maps, masks):
    for value in values(maps, masks).values():
        assert np.isnan(value) or 0 <= value <= 1


@settings(max_examples=60, deadline=None)
@given(maps_of_few_levels, masks_with_a_good_image())
def test_increasing_transforms_change_nothing(maps, masks):
    expected = values(maps, masks)
    for transform in (lambda x: 7 * x - 100, lambda x: x**3, np.exp, lambda x: x.astype(np.int8)):
        assert same(expected, values(transform(maps), masks))


@settings(max_examples=40, deadline=None)
@given(maps_of_few_levels, masks_with_a_good_image(), st.permutations(range(4)), st.booleans())
def test_order_and_orientation_of_images_change_nothing(maps, masks, order, flipped):
    turn = (slice(None), slice(None, None, -1)) if flipped else (slice(None),)
    other = values(maps[order][turn], masks[order][turn])
    assert same(values(maps, masks), other)
    assert same(other, values(maps.transpose(0, 2, 1), masks.transpose(0, 2, 1)))


@settings(max_examples=40, deadline=None)
@given(maps_of_few_levels, masks_with_a_good_image())
def test_a_larger_image_of_larger_pixels_changes_nothing(maps, masks):
    maps, masks = np.repeat(maps, 2, axis=1), np.repeat(masks, 2, axis=1)
    assert same(
        values(maps, masks), values(np.repeat(maps, 2, axis=2), np.repeat(masks, 2, axis=2))
    )


@settings(max_examples=40, deadline=None)
@given(arrays(float, SHAPE, elements=st.floats(0, 1)), masks_with_a_good_image())
def test_perfect_and_inverted_maps(noise, masks):
    perfect = values(noise + 2 * masks, masks)
    inverted = values(noise - 2 * masks, masks)
    for name in ("pixel_auroc", "pixel_ap", "pixel_f1max", "siou", "aupro", "aupro_005", "aupro_1"):
        assert perfect[name] == pytest.approx(1, abs=1e-12)
    for name in ("pixel_auroc", "aupro", "aupro_005", "aupro_1"):
        assert inverted[name] == pytest.approx(0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(maps_of_few_levels, masks_with_a_good_image())
def test_aupro_rises_with_its_limit(maps, masks):
    """The curve rises, so its mean height up to a limit does, too."""
    limits = [0.01, 0.1, 0.3, 0.7, 1.0]
    names = {str(limit): {"metric": "aupro", "limit": limit} for limit in limits}
    found = [result.value for result in pixel_metrics(maps, masks, names).values()]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(found))


@settings(max_examples=60, deadline=None)
@given(maps_of_few_levels, masks_with_a_good_image())
def test_the_whole_aupro_of_equal_regions_is_the_auroc(maps, masks):
    """With one pixel per region PRO is recall."""
    apart = np.zeros(SHAPE, bool)
    apart[:, ::2, ::2] = masks[:, ::2, ::2]
    assume(apart.any())
    found = values(maps, apart)
    assert found["aupro_1"] == pytest.approx(found["pixel_auroc"], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(maps_of_few_levels, masks_with_a_good_image())
def test_repeating_all_images_changes_nothing(maps, masks):
    twice = np.concatenate([maps, maps]), np.concatenate([masks, masks])
    assert same(values(maps, masks), values(*twice))
