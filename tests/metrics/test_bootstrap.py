"""The bootstrap: exact against copies of images, deterministic, paired, and of known coverage."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from visionad_metrics import Samples, bootstrap_areas, compute_on, names
from visionad_metrics.bootstrap import KNOWN, Resampled, draw, interval, over_seeds, resample

N, GOOD, SIZE = 20, 8, 40
LABELS = np.arange(N) >= GOOD
IDS = [f"test/{number:02}" for number in range(N)]
# Every metric that is known, at limits that cut the curve early, late and never.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("image_auroc", {}),
    ("image_ap", {}),
    ("image_f1max", {}),
    ("pixel_auroc", {}),
    ("aupro", {"limit": 0.3}),
    ("aupro", {"limit": 0.02}),
    ("aupro", {"limit": 1.0}),
    ("pl", {}),
    ("pl", {"iou_limit": 0.1, "merge": True, "n_thresholds": 7}),
    ("pl", {"iou_limit": 0.1, "preset": "visionad"}),
]


def draw_samples(rng: np.random.Generator, levels: int | None = None) -> Samples:
    """Draw defects of unequal size that are seen more or less; few levels make ties."""
    masks = np.zeros((N, SIZE, SIZE), bool)
    maps = rng.normal(size=masks.shape)
    for image in np.flatnonzero(LABELS):
        for _ in range(rng.integers(1, 4)):
            height, width = rng.integers(2, 12, 2)
            top, left = rng.integers(0, SIZE - 12, 2)
            box = (image, slice(top, top + height), slice(left, left + width))
            masks[box] = True
            maps[box] += 4 * rng.random()
    if levels:
        maps = np.round(maps * levels) / levels
    maps = maps.astype(np.float32)
    return Samples(maps, masks, maps.mean(axis=(1, 2)), LABELS)


def copies(samples: Samples, weights: np.ndarray) -> Samples:
    """Put images side by side as often as they are drawn."""
    rows = np.repeat(np.arange(N), weights)
    return Samples(*(values[rows] for values in samples._given.values()))


@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "ties"])
@pytest.mark.parametrize(("metric", "parameters"), CASES)
def test_is_the_metric_of_the_drawn_images(metric, parameters, levels, rng):
    samples = draw_samples(rng, levels)
    weights = draw(IDS, LABELS, 12, 0, "bolt")
    found = resample(samples, metric, parameters, weights)
    assert found.reason is None
    assert found.value == pytest.approx(compute_on(samples, metric, parameters).value, abs=1e-12)
    expected = [compute_on(copies(samples, row), metric, parameters).value for row in weights]
    assert found.replicates == pytest.approx(expected, abs=1e-12)
    assert np.ptp(expected) > 0.001
    kept = 1 - np.eye(N, dtype=int)[:3]
    without = [compute_on(copies(samples, row), metric, parameters).value for row in kept]
    assert found.influence.shape == (N,)
    assert found.influence[:3] == pytest.approx(found.value - np.array(without), abs=1e-12)


def test_many_small_blocks_give_the_same(rng, monkeypatch):
    samples, weights = draw_samples(rng), draw(IDS, LABELS, 50, 0, "bolt")
    expected = resample(samples, "aupro", {}, weights).replicates
    for blocks in (1, 7, 10**6):
        monkeypatch.setattr(bootstrap_areas, "BLOCKS", blocks)
        found = resample(draw_samples(np.random.default_rng(0)), "aupro", {}, weights).replicates
        assert found == pytest.approx(expected, abs=1e-12)


def test_perfect_maps_are_exactly_one_in_every_resample():
    masks = np.zeros((N, SIZE, SIZE), bool)
    masks[GOOD:, 3:9, 4:20] = True
    samples = Samples(masks.astype(float), masks, LABELS.astype(float), LABELS)
    weights = draw(IDS, LABELS, 30, 0, "bolt")
    for metric in KNOWN:
        assert (resample(samples, metric, {}, weights).replicates == 1).all(), metric


def test_draws_as_many_good_and_defective_images_as_there_are():
    weights = draw(IDS, LABELS, 500, 0, "bolt")
    assert weights.shape == (500, N)
    assert (weights[:, LABELS].sum(axis=1) == N - GOOD).all()
    assert (weights[:, ~LABELS].sum(axis=1) == GOOD).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.2)
    assert (weights == 0).mean() == pytest.approx(0.35, abs=0.03)  # (1 - 1/n)^n


def test_draws_depend_on_seed_category_and_ids_but_not_on_their_order():
    first = draw(IDS, LABELS, 20, 0, "bolt")
    assert (first == draw(IDS, LABELS, 20, 0, "bolt")).all()
    order = np.random.default_rng(1).permutation(N)
    turned = draw([IDS[place] for place in order], LABELS[order], 20, 0, "bolt")
    assert (turned == first[:, order]).all()
    for other in (
        draw(IDS, LABELS, 20, 1, "bolt"),
        draw(IDS, LABELS, 20, 0, "nut"),
        draw([f"{name}x" for name in IDS], LABELS, 20, 0, "bolt"),
    ):
        assert (other != first).any()


def test_names_what_is_wrong_with_ids():
    with pytest.raises(ValueError, match="one label for each id"):
        draw(["a", "a"], [True, False], 1, 0, "bolt")
    with pytest.raises(ValueError, match="one label for each id"):
        draw(["a", "b"], [True], 1, 0, "bolt")


def test_metrics_without_a_bootstrap_say_so(rng):
    weights = draw(IDS, LABELS, 3, 0, "bolt")
    unknown = set(names()) - set(KNOWN)
    assert {"aupimo", "pixel_ap", "spro"} <= unknown
    for metric in unknown:
        found = resample(draw_samples(rng), metric, {}, weights)
        assert math.isnan(found.value) and not found.replicates.size
        assert found.reason == f"no bootstrap is known for {metric}"
    found = resample(draw_samples(rng), "pl", {"preset": "package_0_1_3"}, weights)
    assert "percentiles" in (found.reason or "") and not found.replicates.size


@pytest.mark.parametrize(("metric", "parameters"), CASES)
def test_undefined_metrics_give_the_librarys_reason(metric, parameters, rng):
    maps = rng.random((N, SIZE, SIZE))
    samples = Samples(maps, np.zeros(maps.shape, bool), maps.max(axis=(1, 2)), np.zeros(N, bool))
    found = resample(samples, metric, parameters, np.ones((3, N)))
    expected = compute_on(samples, metric, parameters)
    assert math.isnan(found.value) and not found.replicates.size
    assert found.reason == expected.reason


def test_resamples_that_see_no_defect_leave_the_metric_without_an_interval(rng):
    """Two defective images, one of which has a mask: every fourth resample has no anomaly."""
    maps = rng.random((4, 8, 8))
    masks = np.zeros(maps.shape, bool)
    masks[3, 2:4, 2:4] = True
    labels = np.array([False, False, True, True])
    weights = draw(["a", "b", "c", "d"], labels, 100, 0, "bolt")
    for metric in ("pixel_auroc", "aupro", "pl"):
        found = resample(Samples(maps, masks), metric, {}, weights)
        lost = (weights[:, 3] == 0).sum()
        assert 10 < lost < 40 and f"undefined on {lost} of 100 resamples" in (found.reason or "")
        assert not found.replicates.size
        assert found.value == pytest.approx(compute_on(Samples(maps, masks), metric, {}).value)


def test_wrong_parameters_are_named(rng):
    weights = draw(IDS, LABELS, 3, 0, "bolt")
    with pytest.raises(ValueError, match="limit"):
        resample(draw_samples(rng), "aupro", {"limit": 2.0}, weights)
    with pytest.raises(TypeError, match="no option"):
        resample(draw_samples(rng), "pl", {"boxy": 1}, weights)


class TestSeeds:
    def test_one_seed_is_itself(self, rng):
        values = rng.random((1, 50))
        assert (over_seeds(values, 0, "padim/bolt") == values[0]).all()

    def test_draws_are_the_same_every_time_and_others_for_another_name(self, rng):
        values = rng.random((3, 50))
        first = over_seeds(values, 0, "padim/bolt")
        assert (first == over_seeds(values, 0, "padim/bolt")).all()
        assert (first != over_seeds(values, 0, "padim/nut")).any()
        assert (first != over_seeds(values, 1, "padim/bolt")).any()

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_varies_as_much_as_a_mean_of_seeds_does(self, count, rng):
        """The variance of a mean over seeds is estimated without bias, from few seeds too."""
        found = []
        for run in range(400):
            effects = np.repeat(rng.normal(size=(count, 1)), 200, axis=1)
            found.append(over_seeds(effects, run, "padim/bolt").var())
        assert np.mean(found) == pytest.approx(1 / count, rel=0.15)


def between(one: Resampled, other: Resampled | None = None, confidence: float = 0.95):
    """Make the interval of a value, or of a difference."""
    if other is None:
        return interval(one.value, one.replicates, one.influence, confidence)
    return interval(
        one.value - other.value,
        one.replicates - other.replicates,
        one.influence - other.influence,
        confidence,
    )


class TestInterval:
    def test_symmetric_replicates_without_skewness_are_cut_at_their_percentiles(self):
        replicates = np.arange(1001.0)
        assert interval(500, replicates, np.zeros(3), 0.9) == pytest.approx((50, 950))
        assert interval(500, replicates, np.array([-1.0, 1]), 0.5) == pytest.approx((250, 750))
        assert interval(2, np.full(9, 2.0), np.zeros(3), 0.9) == (2, 2)

    def test_is_scipys(self, rng):
        """Of a mean, scipy's bootstrap with its own jackknife, on the same resamples."""
        sample = rng.exponential(size=40)
        expected = stats.bootstrap((sample,), np.mean, n_resamples=4000, method="BCa", rng=rng)
        replicates = expected.bootstrap_distribution
        influence = sample.mean() - (sample.sum() - sample) / 39
        found = interval(sample.mean(), replicates, influence, 0.95)
        assert found == pytest.approx(expected.confidence_interval, abs=1e-9)

    def test_a_skewed_value_reaches_further_to_its_tail(self, rng):
        replicates = rng.normal(size=2000)
        low, high = interval(0, replicates, rng.normal(size=50) ** 3 - 3, 0.9)
        plain = interval(0, replicates, np.zeros(50), 0.9)
        assert low < plain[0] and high < plain[1]

    def test_an_algorithm_does_not_differ_from_itself_and_a_shift_is_told_apart(self, rng):
        """Both meet the same images: the shift is sure, though each value is not."""
        weights = draw(IDS, LABELS, 400, 0, "bolt")
        defective = LABELS[:, None, None]
        maps = rng.normal(size=(N, SIZE, SIZE)) + rng.normal(size=(N, 1, 1)) * defective
        masks = np.zeros(maps.shape, bool)
        masks[GOOD:, 5:15, 5:15] = True

        def shifted(by: float) -> Resampled:
            return resample(Samples(maps + by * masks, masks), "aupro", {}, weights)

        worse, better = shifted(0.5), shifted(0.7)
        assert between(worse, shifted(0.5)) == (0, 0)
        low, high = between(better, worse)
        assert 0 < low < high
        assert between(worse)[1] > between(better)[0], "unpaired, both intervals overlap"


class TestCoverage:
    """Of 400 samples from a known population about 95 % have an interval with the true value."""

    def covered(self, sample: Any, metric: str, true: float, labels: np.ndarray) -> float:
        ids = [str(number) for number in range(labels.size)]
        hits = 0
        for run in range(400):
            weights = draw(ids, labels, 300, run, "bolt")
            low, high = between(resample(sample(), metric, {}, weights))
            hits += bool(low <= true <= high)
        return hits / 400

    @pytest.mark.parametrize("shift", [1.5, 2.0], ids=["auroc 0.86", "auroc 0.92"])
    def test_image_auroc(self, shift, rng):
        labels = np.arange(90) >= 30
        true = stats.norm.cdf(shift / math.sqrt(2))
        covered = self.covered(
            lambda: Samples(scores=rng.normal(size=90) + shift * labels, labels=labels),
            "image_auroc", true, labels,
        )  # fmt: skip
        assert 0.92 <= covered <= 0.98

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ["pixel_auroc", "aupro"])
    def test_pixels_whose_images_differ(self, metric, rng):
        """Pixels of one image have much in common: 7,000 of them are not 7,000 samples."""

        def make(good: int, defective: int) -> Samples:
            count = good + defective
            masks = np.zeros((count, 9, 9), bool)
            masks[good:, 2:5, 2:5] = True
            masks[good:, 7:, 7:] = rng.random((defective, 1, 1)) < 0.5
            maps = rng.normal(size=masks.shape) + 0.5 * rng.normal(size=(count, 1, 1))
            return Samples(maps + masks * rng.normal(1.5, 0.7, (count, 1, 1)), masks)

        true = float(np.mean([compute_on(make(900, 1500), metric, {}).value for _ in range(10)]))
        labels = np.arange(80) >= 30
        assert 0.92 <= self.covered(lambda: make(30, 50), metric, true, labels) <= 0.98
