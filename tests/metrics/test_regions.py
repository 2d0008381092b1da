"""Regions from runs against scikit-image's labelling of each mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from skimage.measure import label

from visionad_metrics.regions import find_regions, find_runs
from visionad_metrics.samples import Samples


def labelled(masks):
    """Label image by image with 8-connectivity; regions count on from image to image."""
    found, count = np.zeros(masks.shape, int), 0
    for image, mask in enumerate(masks):
        own = label(mask, connectivity=2)
        found[image][mask] = own[mask] + count
        count += own.max()
    return found[masks] - 1


def samples_of(masks):
    return Samples(np.zeros(masks.shape), masks)


@settings(max_examples=200, deadline=None)
@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.booleans()))
def test_equal_to_scikit_image(masks):
    regions = find_regions(samples_of(masks))
    expected = labelled(masks)
    np.testing.assert_array_equal(regions.of_pixel, expected)
    np.testing.assert_array_equal(regions.size, np.bincount(expected))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.9])
def test_large_tangled_masks(rng, share):
    masks = rng.random((4, 70, 90)) < share
    np.testing.assert_array_equal(find_regions(samples_of(masks)).of_pixel, labelled(masks))


def test_regions_do_not_reach_over_the_border_or_into_the_next_image():
    masks = np.zeros((2, 3, 4), bool)
    masks[0, 0, 3] = masks[0, 1, 0] = True  # the end of one row and the start of the next
    masks[0, 2] = masks[1, 0] = True  # the last row and the first of the next image
    assert find_regions(samples_of(masks)).of_pixel.tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2, 2]


def test_corners_connect():
    assert find_regions(samples_of(np.eye(4, dtype=bool)[None])).size.tolist() == [4]


def test_runs_say_where_they_lie():
    masks = np.zeros((2, 3, 5), bool)
    masks[1, 1, 1:4] = masks[1, 2, 0] = masks[1, 1, 0] = True
    runs = find_runs(samples_of(masks))
    rows = zip(runs.image, runs.row, runs.left, runs.right, runs.lengths, strict=True)
    assert [tuple(map(int, row)) for row in rows] == [(1, 1, 0, 3, 4), (1, 2, 0, 0, 1)]


def test_each_region_weighs_the_same():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, :4, :4] = masks[1, 0, 0] = masks[1, 4:, 4:] = True
    weights = find_regions(samples_of(masks)).equal_weights()
    assert weights.tolist() == [1 / 48] * 16 + [1 / 3] + [1 / 12] * 4


def test_no_region():
    regions = find_regions(samples_of(np.zeros((2, 3, 3), bool)))
    assert regions.size.size == regions.of_pixel.size == 0
