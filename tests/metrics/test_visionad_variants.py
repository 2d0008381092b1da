"""VisionAD's own variants, kept only to compare with the published tables."""

import math

import numpy as np
import pytest

from visionad_metrics import (
    aupro,
    aupro_visionad,
    image_auroc,
    image_auroc_visionad,
    pixel_auroc,
    pixel_auroc_visionad,
)


def test_aupro_agrees_with_the_oracles(oracle_case):
    expected = oracle_case.reference["aupro_0.3.visionad_bad_only"]
    result = aupro_visionad(oracle_case.maps, oracle_case.masks)
    if isinstance(expected, dict):
        assert math.isnan(result.value)
        assert result.reason
    else:
        assert result.value == pytest.approx(expected, abs=1e-6)


def test_aupro_takes_the_better_direction(rng):
    masks = np.zeros((3, 30, 30), bool)
    masks[:2, 5:12, 5:12] = True
    maps = rng.random(masks.shape) - masks
    assert aupro(maps, masks).value < 0.01
    assert aupro_visionad(maps, masks).value > 0.3


def test_aupro_ignores_good_images(rng):
    masks = np.zeros((3, 30, 30), bool)
    masks[:2, 5:12, 5:12] = True
    maps = rng.random(masks.shape) + masks / 2
    expected = aupro_visionad(maps, masks).value
    maps[2] += 5
    assert aupro_visionad(maps, masks).value == expected
    assert aupro(maps, masks).value < expected / 2


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (np.zeros((2, 3, 3)), "no anomalous pixel"),
        (np.ones((2, 3, 3)), "no normal pixel in defective images"),
    ],
)
def test_aupro_is_undefined(masks, reason):
    assert aupro_visionad(np.arange(18.0).reshape(2, 3, 3), masks).reason == reason


@pytest.mark.parametrize("flip", [1, -1])
def test_auroc_is_turned_round_below_chance(rng, flip):
    labels = np.arange(40) < 15
    scores = flip * (rng.normal(size=40) + labels)
    truth = (scores.reshape(40, 1, 1), labels.reshape(40, 1, 1))
    for flipped, honest, arrays in (
        (image_auroc_visionad, image_auroc, (scores, labels)),
        (pixel_auroc_visionad, pixel_auroc, truth),
    ):
        value, result = honest(*arrays).value, flipped(*arrays)
        assert (value > 0.5) == (flip == 1)
        assert result.value == max(value, 1 - value)
        assert result.details["flipped"] == (flip == -1)
        area = np.trapezoid(result.curve["tpr"], result.curve["fpr"])
        assert area == pytest.approx(result.value, abs=1e-12)


def test_undefined_stays_undefined():
    result = image_auroc_visionad([1, 2], [0, 0])
    assert math.isnan(result.value)
    assert result.reason == "no defective image"
