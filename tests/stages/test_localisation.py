"""The figures of Proportion Localised: the metric's own numbers, and what is said where it has none."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import visionad_metrics
from params.reading import ParamsError
from stages.artifacts.files import read_json
from stages.drawing import STYLE
from stages.localisation import draw, draw_thresholds
from tests.workflow.mini_repository import do, make_repository
from visionad_metrics.localisation import PLResult

RUN = "padim/folder/bolt"


def measure(masks: np.ndarray) -> tuple[PLResult, np.ndarray]:
    """Measure maps that are the masks, a little blurred by noise."""
    maps = masks + np.random.default_rng(0).normal(0, 0.05, masks.shape)
    samples = visionad_metrics.Samples(
        maps, masks, maps.max(axis=(1, 2)), masks.any(axis=(1, 2)).astype(int)
    )
    result = visionad_metrics.compute_on(samples, "pl", {"iou_limit": 0.3, "preset": "paper"})
    assert isinstance(result, PLResult)
    return result, maps


def test_curves_are_the_metrics_own() -> None:
    masks = np.zeros((3, 32, 32), bool)
    masks[1, 4:14, 4:14] = masks[2, 20:26, 8:28] = True
    result, _ = measure(masks)
    axes = draw_thresholds(result, "T").axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    own = lines["IoU > 0.3 (the metric)"]
    assert np.allclose(own.get_ydata(), result.curve["localised"])
    assert np.max(np.asarray(own.get_ydata())) == pytest.approx(result.value)
    assert (np.asarray(lines["IoU > 0.7"].get_ydata()) <= np.asarray(own.get_ydata())).all()
    assert "PL 1.000: 2 of 2 anomalies" in axes.get_title(loc="left") or axes.get_title()


def test_without_anomalies_the_reason_is_drawn() -> None:
    masks = np.zeros((2, 16, 16), bool)
    result, maps = measure(masks)
    with mpl.rc_context(STYLE):
        figures = draw(result, np.zeros((2, 16, 16, 3), np.uint8), maps, masks, "T", 4)
    for figure, words in figures.values():
        assert "PL is undefined: no anomalous pixel" in words
        assert any("undefined" in text.get_text() for text in figure.texts)


def test_stage_draws_what_the_run_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make_repository(tmp_path / "repository", categories=["bolt"])
    repository.edit("presets/tiny.yaml", localisation=["padim"])
    monkeypatch.chdir(repository.root)
    plan = repository.write_plan()
    run = f"{RUN}/seed0"
    do("index/folder/bolt", "features/tiny/folder/bolt", f"train/{run}", f"predict/{run}")
    do(f"evaluate/{run}", f"localisation/{RUN}")
    folder = Path("results/figures/folder/localisation/padim/bolt")
    names = {f"{name}.{end}" for name in ("regions", "thresholds") for end in ("svg", "png", "txt")}
    assert {path.name for path in folder.iterdir()} == names
    record = read_json(Path(f"results/metrics/{run}/pl.json"))["values"][0]
    assert f"PL {record['value']:.3f}" in (folder / "regions.txt").read_text()
    assert repository.plan().valid[f"localisation/{RUN}"]
    assert not [name for name in plan.jobs if name.startswith("localisation/random")]


def test_is_drawn_only_of_algorithms_of_the_run_that_has_the_metric(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository", categories=["bolt"])
    assert not [name for name in repository.plan().jobs if name.startswith("localisation")]
    with pytest.raises(ParamsError, match="localisation: patchcore is not among"):
        repository.plan(localisation=["patchcore"])
    with pytest.raises(ParamsError, match="localisation: the run has no metric pl"):
        repository.plan(localisation=["padim"], metrics=["aupro"])


def test_a_new_style_draws_all_figures_anew_and_nothing_else(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository", categories=["bolt"])
    before = repository.plan(localisation=["padim"]).jobs
    old = {name: job.fingerprint for name, job in before.items()}
    repository.replace("params/figures.mplstyle", "font.size: 9", "font.size: 10")
    after = repository.plan(localisation=["padim"]).jobs
    changed = {name.split("/")[0] for name, job in after.items() if job.fingerprint != old[name]}
    # What reads the folder of a comparison, diagrams and all, is made anew, too.
    assert {"figures", "sheet", "compare", "localisation"} <= changed
    assert changed <= {"figures", "sheet", "compare", "localisation", "report"}
