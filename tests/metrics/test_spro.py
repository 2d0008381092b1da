"""sPRO against a plain threshold-by-threshold calculation, by hand, and its configuration."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from visionad_metrics import Samples, aupro, spro
from visionad_metrics.catalogue.spro import contract
from visionad_metrics.saturation import Saturation, make_channels, read_defects_config

WHOLE = {255: Saturation(1.0, relative=True)}


def plain_spro(maps, masks, config, limit):
    united = np.array([np.any([*defects, np.zeros(maps.shape[1:])], axis=0) for defects in masks])
    fpr, found = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        positive = maps >= threshold
        fpr.append((positive & ~united).sum() / (~united).sum())
        shares = [
            min(
                (positive[image] & (defect > 0)).sum()
                / config[defect.max()].area(np.count_nonzero(defect)),
                1,
            )
            for image, defects in enumerate(masks)
            for defect in defects
        ]
        found.append(np.mean(shares))
    fpr, found = np.array(fpr), np.array(found)
    last = np.flatnonzero(fpr <= limit)[-1]
    x, y = list(fpr[: last + 1]), list(found[: last + 1])
    if x[-1] < limit:
        share = (limit - x[-1]) / (fpr[last + 1] - x[-1])
        y.append(y[-1] + share * (found[last + 1] - y[-1]))
        x.append(limit)
    return np.trapezoid(y, x) / limit


@settings(max_examples=60, deadline=None)
@given(
    arrays(int, (3, 4, 5), elements=st.integers(0, 6)),
    arrays(bool, (4, 4, 5), elements=st.booleans()),
    st.sampled_from([0.05, 0.3, 1.0]),
)
def test_agrees_with_the_definition(maps, defects, limit):
    """Four defects, overlapping ones too, of every kind of saturation; the last image is good."""
    config = {
        255: Saturation(1.0, True), 254: Saturation(0.5, True),
        253: Saturation(3, False), 252: Saturation(400, False),
    }  # fmt: skip
    values = [mask.astype(np.uint8) * value for mask, value in zip(defects, config, strict=True)]
    masks = [[one for one in group if one.any()] for group in (values[:3], values[3:], [])]
    result = spro(maps, masks, config, limit)
    if not any(masks):
        assert result.reason == "no anomalous pixel"
    else:
        expected = plain_spro(maps, masks, config, limit)
        assert result.value == pytest.approx(expected, abs=1e-12)


def single(defect_pixels, found, saturation):
    """One image of 400 pixels whose defect is ``defect_pixels`` long, ``found`` of it at the top.

    The rest of the defect is at the bottom. Up to the limit the overlap is what is found; all
    else comes at rate 1.
    """
    mask = np.zeros((20, 20), np.uint8)
    mask.flat[:defect_pixels] = 255
    maps = np.linspace(1, 0, 400).reshape(1, 20, 20) + 1
    maps[0].flat[:found] = 9
    maps[0].flat[found:defect_pixels] = 0
    return spro(maps, [[mask]], {255: saturation}, 0.05).value


@pytest.mark.parametrize(
    ("found", "saturation", "expected"),
    [
        (40, Saturation(40, relative=False), 1.0),
        (20, Saturation(40, relative=False), 0.5),
        (80, Saturation(40, relative=False), 1.0),
        (50, Saturation(400, relative=False), 0.5),  # at most the defect's own 100
        (25, Saturation(0.5, relative=True), 0.5),
        (100, Saturation(1.0, relative=True), 1.0),
    ],
)
def test_by_hand(found, saturation, expected):
    assert single(100, found, saturation) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("saturation", "defect", "scale", "area"),
    [
        (Saturation(0.5, True), 101, 1, 50),  # truncated
        (Saturation(0.001, True), 20, 1, 1),  # never nothing
        (Saturation(70, False), 100, 1, 70),
        (Saturation(70, False), 50, 1, 50),
        (Saturation(1000, False), 500, 0.25, 250),  # a mask of half the side
        (Saturation(1.0, True), 500, 0.25, 500),
    ],
)
def test_saturation_areas(saturation, defect, scale, area):
    assert saturation.area(defect, scale) == area


def test_pixels_of_another_defect_are_no_false_positives():
    masks = np.zeros((2, 10, 10), np.uint8)
    masks[0, :2], masks[1, 4:6] = 255, 255
    maps = np.zeros((1, 10, 10))
    maps[0, :2] = maps[0, 4:6] = 1
    assert spro(maps, [list(masks)], WHOLE).value == pytest.approx(1, abs=1e-12)
    # With the second defect unknown, its 20 pixels come before the limit of 0.05 * 80 = 4.
    maps[0, 4:6] = 2
    assert spro(maps, [[masks[0]]], WHOLE).value == 0


def test_fully_saturated_single_regions_are_aupro(oracle_case):
    """Defects that are the regions themselves, saturated when whole: AUPRO by another name."""
    from skimage.measure import label

    masks = [
        [(found == number) * np.uint8(255) for number in range(1, found.max() + 1)]
        for found in (label(mask, connectivity=2) for mask in oracle_case.masks > 0)
    ]
    expected = aupro(oracle_case.maps, oracle_case.masks, 0.3)
    result = spro(oracle_case.maps, masks, WHOLE, 0.3)
    assert result.value == pytest.approx(expected.value, abs=1e-12, nan_ok=True)
    assert result.reason == expected.reason


def test_undefined_without_saturation_thresholds(rng):
    masks = rng.random((2, 5, 5)) < 0.2
    result = contract(Samples(rng.random((2, 5, 5)), masks))
    assert math.isnan(result.value)
    assert "no saturation thresholds" in result.reason


def test_masks_are_checked(rng):
    maps, mask = rng.random((2, 5, 5)), np.eye(5, dtype=np.uint8)
    cases = [
        ([[mask * 255]], "masks must list the defects of 2 images, got 1"),
        ([[mask * 7], []], r"masks\[0\]\[0\] must hold 0 and one pixel value .* got 7"),
        ([[], [mask * 255, mask * 0]], r"masks\[1\]\[1\] holds no defect"),
        ([[], [mask[:3] * 255]], r"masks\[1\]\[0\] must have the maps' shape \(5, 5\)"),
    ]
    for masks, message in cases:
        with pytest.raises(ValueError, match=message):
            spro(maps, masks, WHOLE)


ENTRY = {
    "defect_name": "missing_pushpin", "pixel_value": 253,
    "relative_saturation": False, "saturation_threshold": 6300,
}  # fmt: skip


def test_configuration_is_read(tmp_path):
    path = tmp_path / "defects_config.json"
    other = {**ENTRY, "pixel_value": 246, "relative_saturation": True, "saturation_threshold": 0.5}
    path.write_text(json.dumps([ENTRY, other]))
    config = read_defects_config(path)
    assert config[253] == Saturation(6300, False, "missing_pushpin")
    assert config[246].area(101) == 50
    channels = make_channels([[], [np.full((2, 3), 246)]], config)
    assert (channels[0].image, channels[0].places.tolist(), channels[0].saturation) == (
        1, [0, 1, 2, 3, 4, 5], 3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "expected a list of defects, got dict"),
        ([{"defect_name": "x"}], "entry 0: expected an object with defect_name, pixel_value"),
        ([ENTRY | {"pixel_value": 0}], "pixel_value must be an integer from 1 to 255, got 0"),
        ([ENTRY, ENTRY], "entry 1: pixel_value 253 is taken by 'missing_pushpin'"),
        ([ENTRY | {"relative_saturation": 1}], "relative_saturation must be true or false"),
        ([ENTRY | {"saturation_threshold": 1.5}], "must be a positive integer of pixels, got 1.5"),
        (
            [ENTRY | {"relative_saturation": True, "saturation_threshold": 1}],
            "must be a float above 0, at most 1.0, got 1",
        ),
    ],
)
def test_configuration_is_checked(tmp_path, entries, message):
    path = tmp_path / "defects_config.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=rf"defects_config\.json: .*{message}"):
        read_defects_config(path)
