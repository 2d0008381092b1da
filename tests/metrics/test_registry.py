"""Metrics by name; what holds for every metric of the catalogue is tested for each."""

import doctest
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import visionad_metrics
from visionad_metrics import MetricResult, Samples, compute, level, names, register, registry

METRICS = registry.catalogue_names()


@pytest.fixture
def own_registry(monkeypatch):
    """Let a test register metrics that are gone afterwards."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", METRICS)
class TestEveryMetric:
    """A file of the catalogue keeps its promises."""

    def test_has_a_function_of_its_name_and_a_level(self, name):
        module = import_module(f"visionad_metrics.catalogue.{name}")
        assert getattr(visionad_metrics, name) is getattr(module, name)
        assert level(name) in ("image", "pixel")

    def test_is_undefined_with_a_reason_without_defects(self, name):
        maps = np.arange(24.0).reshape(2, 3, 4)
        result = compute(name, maps, maps < 0, maps.max(axis=(1, 2)), [0, 0])
        assert math.isnan(result.value)
        assert result.reason

    def test_needs_only_what_its_level_says(self, name):
        maps = np.arange(24.0).reshape(2, 3, 4)
        image, pixel = ([0.0, 1.0], [0, 1]), (maps, maps > 20)
        reads_image = level(name) == "image"
        partial = compute(name, *((None, None, *image) if reads_image else (*pixel, None, None)))
        whole = compute(name, *pixel, *image)
        assert partial.value == whole.value or partial.reason == whole.reason is not None
        with pytest.raises(TypeError, match="got None"):
            compute(name, *((*pixel, None, None) if reads_image else (None, None, *image)))

    def test_does_not_import_torch(self, name):
        code = (
            f"import sys, visionad_metrics as v; v.level({name!r}); print('torch' in sys.modules)"
        )
        assert run_python(code) == "False"


def test_compute_gives_each_metric_its_own_arrays():
    maps = np.zeros((2, 1, 2))
    maps[1, 0] = 1, 2
    masks = np.array([[[0, 0]], [[1, 0]]])
    scores, labels = [5.0, 4.0], [0, 1]
    assert compute("image_auroc", maps, masks, scores, labels).value == 0.0
    assert compute("pixel_auroc", maps, masks, scores, labels).value == 2 / 3
    assert (level("image_auroc"), level("pixel_auroc")) == ("image", "pixel")


def test_importing_and_listing_import_no_metric_and_no_torch():
    code = """
import sys, visionad_metrics
visionad_metrics.names(), dir(visionad_metrics)
prefix = "visionad_metrics.catalogue."
print([m for m in sys.modules if m.startswith(prefix) or m in ("torch", "scipy", "skimage")])
visionad_metrics.compute("image_auroc", None, None, [0, 1], [0, 1])
print([m for m in sys.modules if m.startswith(prefix) or m in ("torch", "scipy", "skimage")])
"""
    assert run_python(code).splitlines() == ["[]", "['visionad_metrics.catalogue.image_auroc']"]


def test_a_new_file_is_a_new_metric(tmp_path, monkeypatch, own_registry):
    (tmp_path / "tmp_share.py").write_text(
        "from visionad_metrics.registry import register\n"
        "from visionad_metrics.result import MetricResult\n"
        "@register('tmp_share', level='image')\n"
        "def tmp_share(samples, scale=1.0):\n"
        "    return MetricResult(scale * samples.image[1].mean())\n"
    )
    (tmp_path / "_helper.py").write_text("raise RuntimeError('not a metric')")
    paths = [*visionad_metrics.catalogue.__path__, str(tmp_path)]
    monkeypatch.setattr(visionad_metrics.catalogue, "__path__", paths)
    assert "tmp_share" in names()
    assert "_helper" not in names()
    assert compute("tmp_share", None, None, [3, 4], [0, 1], scale=4.0).value == 2.0
    assert "tmp_share" in dir(visionad_metrics)


def test_a_file_that_registers_nothing_is_no_metric(tmp_path, monkeypatch):
    (tmp_path / "tmp_empty.py").write_text("")
    monkeypatch.setattr(visionad_metrics.catalogue, "__path__", [str(tmp_path)])
    with pytest.raises(LookupError, match="tmp_empty"):
        level("tmp_empty")


def test_own_metrics_can_be_registered(own_registry):
    @register("mine", level="image")
    def mine(samples):
        return MetricResult(float(samples.image[0].max()))

    assert "mine" in names()
    assert compute("mine", None, None, [1, 3], [0, 0]).value == 3
    assert mine(Samples(scores=[1], labels=[0])).value == 1


@pytest.mark.parametrize("name", ["mine", "image_auroc"])
def test_a_name_is_taken_once(own_registry, monkeypatch, name):
    registry._registered.pop("image_auroc", None)  # taken even before its file is imported
    if name == "mine":
        register(name, level="image")(lambda samples: MetricResult(0.0))
    with pytest.raises(ValueError, match=f"a metric named '{name}' exists already"):
        register(name, level="image")(lambda samples: MetricResult(1.0))


def test_the_level_is_one_of_two(own_registry):
    with pytest.raises(ValueError, match="must be 'image' or 'pixel', got 'region'"):
        register("mine", level="region")


@pytest.mark.parametrize("function", [level, lambda name: compute(name, None, None, None, None)])
def test_an_unknown_name_brings_up_the_nearest(function):
    message = "no metric is named 'image_auc'; did you mean 'image_auroc'?.* pixel_auroc"
    with pytest.raises(LookupError, match=message):
        function("image_auc")
    with pytest.raises(AttributeError, match="has no attribute 'image_auc'"):
        visionad_metrics.image_auc  # noqa: B018


def test_unknown_parameters_are_named():
    with pytest.raises(TypeError, match="metric 'image_auroc' .*'limit'"):
        compute("image_auroc", None, None, [0, 1], [0, 1], limit=0.3)


def test_readme_examples():
    readme = Path(__file__).resolve().parents[2] / "metrics" / "README.md"
    done = doctest.testfile(str(readme), module_relative=False)
    assert done.attempted > 0
    assert done.failed == 0
