"""sIoU by hand, and against a plain calculation region by region."""

import math

import numpy as np
import pytest
from skimage.measure import label

from visionad_metrics import pixel_f1max, siou


def plain_siou(maps, masks, threshold):
    overlaps, precisions = [], []
    for values, mask in zip(maps, masks, strict=True):
        regions = label(mask, connectivity=2)
        components = label(values >= threshold, connectivity=2)
        for number in range(1, regions.max() + 1):
            region = regions == number
            touching = np.isin(components, np.setdiff1d(components[region], 0))
            others = mask & ~region
            overlaps.append((region & touching).sum() / ((region | touching) & ~others).sum())
        for number in range(1, components.max() + 1):
            precisions.append(mask[components == number].mean())
    return overlaps, precisions


def test_agrees_with_the_definition(oracle_case):
    masks = oracle_case.masks > 0
    result = siou(oracle_case.maps, masks)
    if not masks.any():
        assert math.isnan(result.value)
        return
    threshold = pixel_f1max(oracle_case.maps, masks).details["threshold"]
    overlaps, precisions = plain_siou(oracle_case.maps, masks, threshold)
    assert result.value == pytest.approx(np.mean(overlaps), abs=1e-12)
    assert result.details["threshold"] == threshold
    assert result.details["ppv"] == pytest.approx(np.mean(precisions), abs=1e-12)
    for level, f1 in zip(*result.curve.values(), strict=True):
        found = (np.array(overlaps) > level).sum()
        wrong = (np.array(precisions) <= level).sum()
        missed = len(overlaps) - found
        assert f1 == pytest.approx(2 * found / (2 * found + missed + wrong), abs=1e-12)
    assert result.details["f1"] == pytest.approx(result.curve["f1"].mean())


def test_one_prediction_over_two_regions_is_not_punished_for_both():
    """Regions of 2 pixels each; one component covers both and the 1 pixel between them.

    For each: found 2; union 2 + 1 outside all regions = 3, the other region is left out: 2/3.
    """
    masks = np.array([[[1, 1, 0, 1, 1, 0]]])
    result = siou(np.array([[[9, 9, 9, 9, 9, 0]]]), masks, threshold=5)
    assert result.value == pytest.approx(2 / 3, abs=1e-15)
    assert result.details["ppv"] == pytest.approx(4 / 5, abs=1e-15)


def test_a_region_that_no_component_touches_counts_0():
    masks = np.array([[[1, 0, 0, 1]]])
    result = siou(np.array([[[9, 0, 0, 0]]]), masks, threshold=5)
    assert result.value == 0.5
    assert (result.details["regions"], result.details["components"]) == (2, 1)


def test_components_of_good_images_lower_f1_not_the_value():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2, :2] = True
    maps = masks.astype(float)
    clean = siou(maps, masks, threshold=0.5)
    maps[1, 3, 3] = 1
    result = siou(maps, masks, threshold=0.5)
    assert (clean.value, clean.details["f1"], clean.details["ppv"]) == (1, 1, 1)
    assert (result.value, result.details["f1"], result.details["ppv"]) == (
        1, pytest.approx(2 / 3), 0.5,
    )  # fmt: skip


def test_nothing_predicted():
    result = siou(np.zeros((1, 3, 3)), np.eye(3)[None], threshold=1)
    assert result.value == 0
    assert result.details["ppv"] is None


def test_the_threshold_is_a_number():
    for threshold in (math.nan, math.inf, True):
        with pytest.raises(ValueError, match="threshold must be a finite number"):
            siou(np.zeros((1, 3, 3)), np.eye(3)[None], threshold=threshold)
