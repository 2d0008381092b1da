"""The evaluate stage: groups, methods and names of metrics, one sort for all of a group."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import visionad_metrics
from stages.artifacts.maps import read_info, read_maps, write_maps
from stages.evaluate import CURVE_POINTS, Truth, evaluate, stored_curve
from visionad_metrics import ranking

SIZE = 24
METRICS = {
    "image_auroc": {"metric": "image_auroc", "parameters": {}},
    "pixel_ap": {"metric": "pixel_ap", "parameters": {}},
    "aupro": {"metric": "aupro", "parameters": {"limit": 0.3}},
    "strict": {"metric": "aupro", "parameters": {"limit": 0.05}},
    "siou": {"metric": "siou", "parameters": {}},
}


@pytest.fixture
def truth() -> Truth:
    """Give two good images, two with a spot and two with a dent."""
    masks = np.zeros((6, SIZE, SIZE), bool)
    masks[2:4, 3:8, 3:8] = masks[4:, 10:20, 12:14] = True
    kinds = np.array(["good", "good", "spot", "spot", "dent", "dent"])
    return Truth(kinds != "good", kinds, masks)


@pytest.fixture
def predictions(tmp_path: Path, truth: Truth) -> Path:
    """Two methods: one that sees all, primary, and one that sees spots only, at half the size."""
    rng = np.random.default_rng(0)
    seen = rng.random(truth.masks.shape) + truth.masks
    spots = truth.masks & (truth.defect_types == "spot")[:, None, None]
    half = (rng.random(truth.masks.shape) + 2 * spots)[:, ::2, ::2]
    path = tmp_path / "maps.h5"
    maps = {"all": seen.astype(np.float32), "half": half.astype(np.float32)}
    scores = {"all": seen.max(axis=(1, 2)), "half": half.max(axis=(1, 2))}
    write_maps(path, [f"test/{n}" for n in range(6)], maps, scores, ("all", "all"))
    return path


def select(records: list[dict], method: str, group: str) -> dict:
    (found,) = [r for r in records if (r["method"], r["defect_type"]) == (method, group)]
    return found


def test_values_are_those_of_the_library(predictions, truth):
    found = evaluate(METRICS, predictions, read_info(predictions), truth, by_defect_type=True)
    assert set(found) == set(METRICS)
    with_spots = truth.defect_types != "dent"
    maps = read_maps(predictions, "all")
    for name in ("aupro", "strict", "pixel_ap", "siou"):
        assert [(r["method"], r["defect_type"]) for r in found[name]] == [
            (method, group) for method in ("all", "half") for group in ("all", "dent", "spot")
        ]
        metric = METRICS[name]
        function = getattr(visionad_metrics, metric["metric"])
        for group, rows in (("all", slice(None)), ("spot", with_spots)):
            expected = function(maps[rows], truth.masks[rows], **metric["parameters"]).value
            assert select(found[name], "all", group)["value"] == expected
    record = select(found["image_auroc"], "all", "spot")
    assert (record["good_images"], record["defective_images"]) == (2, 2)
    assert record["primary"] and not select(found["image_auroc"], "half", "all")["primary"]
    assert select(found["aupro"], "half", "spot")["value"] > 0.6
    assert select(found["aupro"], "half", "dent")["value"] < 0.5
    json.dumps(found, allow_nan=False)


def test_one_sort_per_method_and_group(predictions, truth, monkeypatch):
    sorts = []
    original = ranking._ascending_normal
    monkeypatch.setattr(
        ranking, "_ascending_normal", lambda *args: sorts.append(1) or original(*args)
    )
    evaluate(METRICS, predictions, read_info(predictions), truth, by_defect_type=True)
    assert len(sorts) == 2 * 3
    del sorts[:]
    evaluate(METRICS, predictions, read_info(predictions), truth, by_defect_type=False)
    assert len(sorts) == 2


def test_no_defect_is_null_with_its_reason(predictions, truth):
    clean = replace(truth, masks=truth.masks & False)
    found = evaluate(METRICS, predictions, read_info(predictions), clean, by_defect_type=False)
    record = select(found["aupro"], "all", "all")
    assert record["value"] is None
    assert record["reason"] == "no anomalous pixel"
    assert record["curve"] is None


def test_curves_are_kept_for_all_images_only_and_thinned(predictions, truth):
    found = evaluate(METRICS, predictions, read_info(predictions), truth, by_defect_type=True)
    assert select(found["aupro"], "all", "spot")["curve"] is None
    curve = select(found["pixel_ap"], "all", "all")["curve"]
    assert 10 < len(curve["recall"]) == len(curve["precision"]) <= CURVE_POINTS
    assert curve["recall"][-1] == 1
    points = np.linspace(0, 1, 1001)
    result = visionad_metrics.MetricResult(0.5, curve={"x": points, "y": points / 3})
    kept = stored_curve(result)
    assert len(kept["x"]) == CURVE_POINTS
    assert (kept["x"][0], kept["x"][-1]) == (0, 1)
    assert all(math.isclose(x / 3, y, rel_tol=1e-5) for x, y in zip(*kept.values(), strict=True))
