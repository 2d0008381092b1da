"""Why a job must run, in words: the reason itself is named, with its place and its values."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from params.hyperparameters import declaration, metric_parameters
from params.reading import ParamsError
from stages import index
from stages.artifacts.job import Job, read_job
from stages.artifacts.provenance import write_provenance
from stages.artifacts.stamp import read_stamp
from tests.workflow.mini_repository import Repository, make_repository, recolour
from workflow import fingerprint
from workflow.plan import Plan, versions_warning
from workflow.why import MANY, Why, changed_names, differences, shortened

CATEGORIES = ("bolt", "nut")
TRAIN, PREDICT, EVALUATE = (
    f"{stage}/padim/folder/bolt/seed0" for stage in ("train", "predict", "evaluate")
)
INDEX, FEATURES = "index/folder/bolt", "features/tiny/folder/bolt"
LATE = ["aggregate/folder", "compare/folder", "figures/folder", "summary", "report"]
PADIM_FILE = "algorithms/padim.py"
SIGMA = "parameter parameters.sigma: 4.0 -> 2.0"


@pytest.fixture(autouse=True)
def fresh_declarations() -> Iterator[None]:
    """Forget algorithms and metrics that were read before a test edits them."""
    for remembered in (declaration, metric_parameters):
        remembered.cache_clear()
    yield
    for remembered in (declaration, metric_parameters):
        remembered.cache_clear()


def finish(plan: Plan) -> None:
    """Do what is to do, in the working folder: real indexes, made-up rest, full stamps."""
    plan.write()
    for planned in plan.stale:
        job = read_job(planned.file, planned.stage)
        if job.stage == "index":
            index.body(job, None)
        else:
            make_up(job)
        write_provenance(job, {}, threads=1)


def make_up(job: Job) -> None:
    """Write something for each output, metrics with the fingerprints that they have."""
    for name, path in job.outputs.items():
        if name != "provenance":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_text(json.dumps({"fingerprint": job.parts.get(name), "of": str(path)}))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Make everything once."""
    repository = make_repository(tmp_path_factory.mktemp("why") / "repository", CATEGORIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.root)
        finish(repository.plan())
    return repository


@pytest.fixture
def repository(start: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Copy the finished repository, and go there, as stages do."""
    shutil.copytree(start.root, tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "repository")
    return Repository(tmp_path / "repository")


@pytest.fixture
def why(repository: Repository) -> Callable[..., list[str]]:
    """Return a function that explains jobs by name, as the plan sees them now."""

    def why(*names: str, **overrides: Any) -> list[str]:
        fresh_plan = plan_again(repository, **overrides)
        return Why(fresh_plan).explain([fresh_plan.jobs[name] for name in names])

    return why


def plan_again(repository: Repository, **overrides: Any) -> Plan:
    declaration.cache_clear()
    metric_parameters.cache_clear()
    return repository.plan(**overrides)


def stale(plan: Plan) -> set[str]:
    return {name for name, valid in plan.valid.items() if not valid}


def command(repository: Repository, *words: str) -> Any:
    return repository.python("-m", "workflow.plan", *words)


def edit_sigma(repository: Repository) -> None:
    """Change a parameter that only prediction reads."""
    repository.edit("algorithms/padim.yaml", parameters={"sigma": 2.0})


class TestWords:
    """What differs, leaf by leaf."""

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 2}}, []),
            ({"a": {"b": 4.0}}, {"a": {"b": 2.0}}, ["a.b: 4.0 -> 2.0"]),
            ({"a": 4}, {"a": 4.0}, ["a: 4 -> 4.0"]),
            ({"a": None}, {"a": "x"}, ['a: null -> "x"']),
            ({}, {"a": [1]}, ["a: new, [1]"]),
            ({"a": {"b": 1}}, {}, ['a: gone, was {"b": 1}']),
            ({"a": {"b": 1}}, {"a": 2}, ['a: {"b": 1} -> 2']),
            ({"m": ["x", "y"]}, {"m": ["z", "x"]}, ["m: z added, y removed"]),
            ({"m": ["x", "y"]}, {"m": ["y", "x"]}, ["m: another order"]),
            ({"m": [1, 2]}, {"m": [1, 3]}, ["m: [1, 2] -> [1, 3]"]),
            ({"m": "x" * 99}, {"m": "y"}, ["m: \"" + "x" * 59 + "... -> \"y\""]),
        ],
    )  # fmt: skip
    def test_differences(self, old, new, words):
        assert list(differences(old, new)) == words

    def test_names(self):
        assert changed_names({"a": "1", "b": "1", "c": "1"}, {"d": "1", "b": "2", "a": "1"}) == [
            "b changed", "d added", "c removed",
        ]  # fmt: skip

    def test_shortened(self):
        words = list("abcdefgh")
        assert shortened(words[: MANY + 1]) == words[: MANY + 1], "no line is saved"
        assert shortened(words) == [*words[:MANY], "... and 3 more"]


class TestNothing:
    """What is valid needs no reason."""

    def test_nothing_is_stale(self, repository, why):
        assert stale(plan_again(repository)) == set()
        assert why(TRAIN) == [f"{TRAIN}: valid, need not run"]
        assert command(repository, "--why").stdout == "nothing must run\n"
        assert json.loads(command(repository, "--why", "--json").stdout) == []

    def test_named_and_valid(self, repository):
        done = command(repository, "--why", TRAIN, "--json")
        assert json.loads(done.stdout) == [
            {"job": TRAIN, "must_run": False, "reasons": [], "because_of": []}
        ]


class TestParameters:
    """A parameter is named with both values."""

    def test_hyperparameter(self, repository, why):
        edit_sigma(repository)
        assert why(PREDICT) == [f"{PREDICT}:", f"  {SIGMA}"]
        assert why(TRAIN) == [f"{TRAIN}: valid, need not run"]

    def test_job_above(self, repository, why):
        repository.edit("algorithms/padim.yaml", batch_size=3)
        assert why(PREDICT) == [f"{PREDICT}:", f"  {TRAIN}:", "    parameter batch_size: 8 -> 3"]

    def test_each_job_is_explained_once(self, repository, why):
        edit_sigma(repository)
        assert why(EVALUATE, PREDICT, "sheet/padim/folder") == [
            f"{EVALUATE}:",
            f"  {PREDICT}:",
            f"    {SIGMA}",
            "sheet/padim/folder:",
            f"  {PREDICT}: see above",
            "  predict/padim/folder/nut/seed0:",
            f"    {SIGMA}",
        ]

    def test_many_above(self, repository, why):
        repository.edit("presets/tiny.yaml", budget={"train_seconds": 5})
        lines = why("aggregate/folder")
        assert lines[:2] == [
            "aggregate/folder:",
            "  parameter settings.random.train_seconds: 7200.0 -> 5.0",
        ]
        assert lines[-1] == "  ... and 7 more above it"

    def test_metrics(self, repository, why):
        repository.edit("presets/tiny.yaml", metrics=["image_auroc", "aupro", "pixel_ap", "pl"])
        assert why("aggregate/folder")[:2] == [
            "aggregate/folder:", "  parameter metrics: pixel_ap added, pixel_auroc removed",
        ]  # fmt: skip
        assert why(EVALUATE) == [
            f"{EVALUATE}:",
            '  parameter metrics.pixel_ap: new, {"metric": "pixel_ap", "parameters": {}}',
            '  parameter metrics.pixel_auroc: gone, was {"metric": "pixel_auroc", "parameters": {}}',
        ]

    def test_a_metrics_parameter(self, repository, why):
        repository.edit("metrics.yaml", parameters={"pl": {"iou_limit": 0.6}})
        assert why(EVALUATE) == [
            f"{EVALUATE}:", "  parameter metrics.pl.parameters.iou_limit: 0.3 -> 0.6",
        ]  # fmt: skip

    def test_new_algorithm(self, repository, why):
        repository.write("algorithms/padim2.yaml", {"extends": "padim"})
        name = TRAIN.replace("padim", "padim2")
        algorithms = ["random", "padim", "padim2"]
        path = f"results/models/{name.removeprefix('train/')}/provenance.json"
        assert why(name, algorithms=algorithms) == [f"{name}:", f"  not there: {path}"]
        assert "  parameter algorithms: padim2 added" in why("summary", algorithms=algorithms)

    def test_fewer_categories(self, repository, why):
        lines = why("check/folder", datasets={"folder": ["bolt"]})
        assert lines == ["check/folder:", "  no longer reads index/folder/nut"]

    def test_where_images_lie_is_no_reason(self, repository, why):
        os.rename(repository.images, repository.root / "moved")
        assert why(INDEX, roots={"folder": "moved"}) == [f"{INDEX}: valid, need not run"]


class TestCode:
    """Changed code is named by file and function."""

    def test_changed(self, repository, why):
        repository.replace(PADIM_FILE, "maps = upsample(", "maps = 1 * upsample(")
        line = "  code: algorithms/padim.py: Padim.predict changed"
        assert why(TRAIN) == [f"{TRAIN}:", line]
        assert why("predict/random/folder/bolt/seed0") == [
            "predict/random/folder/bolt/seed0: valid, need not run"
        ]

    def test_class_and_top_level(self, repository, why):
        repository.replace(PADIM_FILE, "    shuffle = False", "    shuffle = bool(0)")
        repository.replace(PADIM_FILE, "\n@register", "\nUNUSED = 1\n\n@register")
        assert why(TRAIN)[1:] == [
            "  code: algorithms/padim.py: top level changed",
            "  code: algorithms/padim.py: Padim changed",
        ]

    def test_added_and_removed(self, repository, why):
        path = repository.root / PADIM_FILE
        text = path.read_text()
        path.write_text(text + "\n\ndef more():\n    pass\n")
        assert why(TRAIN)[1:] == ["  code: algorithms/padim.py: more added"]
        finish(plan_again(repository))
        path.write_text(text)
        assert why(TRAIN)[1:] == ["  code: algorithms/padim.py: more removed"]

    def test_other_imports(self, repository, why):
        new = repository.root / "algorithms/blocks/new.py"
        new.write_text("x = 1\n")
        repository.replace(
            PADIM_FILE,
            "from torch import Tensor",
            "from torch import Tensor\nimport algorithms.blocks.new",
        )
        top = "  code: algorithms/padim.py: top level changed"
        assert why(TRAIN)[1:] == ["  code: algorithms/blocks/new.py: used now", top]
        finish(plan_again(repository))
        repository.replace(PADIM_FILE, "\nimport algorithms.blocks.new", "")
        new.unlink()
        assert why(TRAIN)[1:] == ["  code: algorithms/blocks/new.py: no longer used", top]

    def test_order(self, repository, why):
        """Two functions that change places: none differs, but the module does."""
        new = repository.root / "algorithms/blocks/new.py"
        new.write_text("def f(): pass\ndef g(): pass\n")
        repository.replace(
            PADIM_FILE,
            "from torch import Tensor",
            "from torch import Tensor\nimport algorithms.blocks.new",
        )
        finish(plan_again(repository))
        new.write_text("def g(): pass\ndef f(): pass\n")
        assert why(TRAIN)[1:] == ["  code changed: the order of definitions"]

    def test_metric(self, repository, why):
        path = "metrics/visionad_metrics/catalogue/pixel_auroc.py"
        repository.replace(path, 'level="pixel"', 'level=("pixel")[:]')
        assert why(EVALUATE) == [f"{EVALUATE}:", "  code of the metric pixel_auroc changed"]

    def test_known_from_the_recorded_code_only(self, repository, why):
        """A clone has pulled ``results/code``, and never written ``.plan/code``."""
        shutil.move(repository.root / ".plan/code", repository.root / "results/code")
        repository.replace(PADIM_FILE, "maps = upsample(", "maps = 1 * upsample(")
        assert why(TRAIN)[1:] == ["  code: algorithms/padim.py: Padim.predict changed"]

    def test_not_known(self, repository, why):
        digest = repository.plan().jobs[TRAIN].program.digest
        shutil.rmtree(repository.root / ".plan/code")
        repository.replace(PADIM_FILE, "maps = upsample(", "maps = 1 * upsample(")
        assert why(TRAIN)[1:] == [f"  code changed (what it was, {digest[:12]}, is not known here)"]


class TestData:
    """Images and masks are named."""

    @pytest.mark.parametrize(
        "name", ["train/good/003.png", "test/spot/001.png", "ground_truth/spot/001_mask.png"]
    )
    def test_changed(self, repository, why, name):
        recolour(repository.images / "bolt" / name)
        assert why(INDEX) == [f"{INDEX}:", f"  data: data/parts/bolt/{name} changed"]
        assert why("index/folder/nut") == ["index/folder/nut: valid, need not run"]

    def test_seen_from_below(self, repository, why):
        recolour(repository.images / "bolt/test/spot/001.png")
        assert why(PREDICT) == [
            f"{PREDICT}:",
            f"  {FEATURES}:",
            f"    {INDEX}:",
            "      data: data/parts/bolt/test/spot/001.png changed",
        ]

    def test_added_and_removed(self, repository, why):
        images = repository.images / "bolt"
        shutil.copy(images / "train/good/000.png", images / "train/good/new.png")
        (images / "test/good/001.png").unlink()
        assert why(INDEX)[1:] == [
            "  data: data/parts/bolt/train/good/new.png added",
            "  data: data/parts/bolt/test/good/001.png removed",
        ]

    def test_many(self, repository, why):
        for path in (repository.images / "bolt/train/good").iterdir():
            recolour(path)
        lines = why(INDEX)
        assert lines[1] == "  data: data/parts/bolt/train/good/000.png changed"
        assert lines[MANY + 1 :] == ["  ... and 7 more"]

    def test_files_beside_images(self, repository, why):
        """They count, since one may become an image's mask; only one that is new is blamed."""
        (repository.images / "bolt/ground_truth/notes.txt").write_text("x")
        words = "data: a file below ground_truth changed that is no image in use"
        assert why(INDEX)[1:] == [f"  {words}"]
        finish(plan_again(repository))
        recolour(repository.images / "bolt/train/good/003.png")
        assert why(INDEX)[1:] == ["  data: data/parts/bolt/train/good/003.png changed"]

    def test_without_an_index(self, repository, why):
        recolour(repository.images / "bolt/train/good/003.png")
        (repository.root / "results/index/folder/bolt.parquet").write_text("damaged")
        assert why(INDEX)[1:] == ["  data: files below train changed"]

    def test_elsewhere(self, repository, why, tmp_path):
        """Images outside of the repository are named in full."""
        os.rename(repository.images, tmp_path / "moved")
        recolour(tmp_path / "moved/bolt/train/good/003.png")
        path = tmp_path / "moved/bolt/train/good/003.png"
        assert why(INDEX, roots={"folder": str(tmp_path / "moved")})[1:] == [
            f"  data: {path} changed"
        ]

    def test_weights(self, repository, why):
        weights = repository.root / "weights.pth"
        weights.write_bytes(b"one")
        backbone = repository.read("backbones/tiny.yaml")
        source = {"source": "file", "path": "weights.pth"}
        repository.write("backbones/tiny.yaml", {**backbone, "weights": source})
        finish(plan_again(repository))
        weights.write_bytes(b"two")
        assert why(FEATURES) == [f"{FEATURES}:", "  data: weights changed"]


class TestResults:
    """Results that are missing or damaged are named."""

    MAPS = "results/maps/padim/folder/bolt/seed0.h5"
    STAMP = "results/maps/padim/folder/bolt/seed0.provenance.json"

    def test_missing(self, repository, why):
        (repository.root / self.MAPS).unlink()
        assert why(PREDICT) == [f"{PREDICT}:", f"  missing or cut short: {self.MAPS}"]
        assert why(EVALUATE) == [f"{EVALUATE}: valid, need not run"]

    def test_cut_short(self, repository, why):
        os.truncate(repository.root / self.MAPS, 3)
        assert why(PREDICT) == [f"{PREDICT}:", f"  missing or cut short: {self.MAPS}"]

    def test_no_stamp(self, repository, why):
        (repository.root / self.STAMP).unlink()
        assert why(PREDICT) == [f"{PREDICT}:", f"  not there: {self.STAMP}"]
        (repository.root / self.STAMP).write_text("{")
        assert why(PREDICT) == [f"{PREDICT}:", f"  cannot be read: {self.STAMP}"]

    def test_stamped_by_an_older_version(self, repository, why):
        path = repository.root / self.STAMP
        data = json.loads(path.read_text())
        kept = {key: data[key] for key in ("files", "parameters", "code")}
        path.write_text(json.dumps({**kept, "fingerprint": "old"}))
        words = "made by an older version, whose stamp lacks versions, data, upstream"
        assert why(PREDICT) == [f"{PREDICT}:", f"  {words}"]

    def test_same_in_all_that_is_stamped(self, repository, why):
        path = repository.root / self.STAMP
        path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "old"}))
        assert why(PREDICT)[1:] == ["  made by another version of workflow/jobs.py"]

    def test_a_job_above_that_was_made_anew(self, repository, why):
        """As after `snakemake train`: the jobs below it still have to follow."""
        repository.edit("algorithms/padim.yaml", batch_size=3)
        plan = plan_again(repository)
        plan.write()
        job = read_job(plan.jobs[TRAIN].file, "train")
        make_up(job)
        write_provenance(job, {}, threads=1)
        assert why(PREDICT) == [f"{PREDICT}:", f"  {TRAIN}: made anew since"]

    def test_in_the_store(self, repository, why):
        store = {"pipeline": {"store_gb": 1}}
        before = repository.read("algorithms/padim.yaml")
        plan_again(repository, **store).keep()
        edit_sigma(repository)
        finish(plan_again(repository))
        repository.write("algorithms/padim.yaml", before)
        assert why(PREDICT) == [f"{PREDICT}:", "  parameter parameters.sigma: 2.0 -> 4.0"]
        assert why(PREDICT, **store) == [f"{PREDICT}: need not run, its result is in the store"]
        plan = plan_again(repository, **store)
        assert Why(plan).facts(plan.jobs[PREDICT]) == {
            "job": PREDICT, "must_run": False, "reasons": [], "because_of": [],
        }  # fmt: skip
        shutil.rmtree(repository.root / ".store" / plan.jobs[EVALUATE].fingerprint)
        assert why(EVALUATE, **store) == [
            f"{EVALUATE}:", f"  {PREDICT}: made anew since, and in the store",
        ]  # fmt: skip


def test_forced(repository):
    plan = plan_again(repository)
    plan.force(lambda job: job.name == TRAIN)
    explained = Why(plan).explain([plan.jobs[PREDICT], plan.jobs[INDEX]])
    assert explained == [
        f"{PREDICT}:",
        f"  {TRAIN}:",
        "    asked for by --forcerun",
        f"{INDEX}: valid, need not run",
    ]


class TestCommand:
    """``python -m workflow.plan --why``."""

    def test_all_that_is_stale(self, repository):
        edit_sigma(repository)
        done = command(repository, "--why")
        assert done.returncode == 0, done.stderr
        heads = [line.rstrip(":") for line in done.stdout.splitlines() if line[0] != " "]
        assert set(heads) == stale(plan_again(repository))
        assert done.stdout.count(SIGMA) == len(CATEGORIES)

    @pytest.mark.parametrize(
        "target", ["results/maps/padim/folder/bolt/seed0.h5", "predict/padim/folder/bolt", PREDICT,
                   "./results/maps/padim/folder/bolt/"],
    )  # fmt: skip
    def test_targets(self, repository, target):
        edit_sigma(repository)
        plan = plan_again(repository)
        assert plan.find(target) == [plan.jobs[PREDICT]]

    def test_json(self, repository):
        edit_sigma(repository)
        done = command(repository, "--why", PREDICT, "results/leaderboard", PREDICT, "--json")
        facts = json.loads(done.stdout)
        assert facts[0] == {
            "job": PREDICT, "must_run": True, "reasons": [SIGMA], "because_of": [],
        }  # fmt: skip
        assert [fact["job"] for fact in facts] == [PREDICT, "aggregate/folder"]
        assert facts[1]["reasons"] == []
        assert PREDICT in facts[1]["because_of"]

    def test_unknown(self, repository):
        with pytest.raises(ParamsError, match="predict/padim/folder/bolt/seed0"):
            plan_again(repository).find("predict/padin/folder/bolt/seed0")
        done = command(repository, "--why", "results/nothing.json")
        assert done.returncode == 1
        assert done.stderr.startswith("error: results/nothing.json: no job of this run makes it")
        assert "did you mean" in done.stderr
        assert "Traceback" not in done.stderr


class TestPackageVersions:
    """Results made with another numpy: stale where the policy is strict, else kept and named."""

    OLD = "1.0.0"
    WARN = {"pipeline": {"package_versions": "warn"}}

    @pytest.fixture
    def repository(
        self, start: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Repository:
        """Make everything with another numpy."""
        repository = Repository(tmp_path / "repository")
        shutil.copytree(start.root, repository.root)
        shutil.rmtree(repository.root / "results")
        monkeypatch.chdir(repository.root)
        real = fingerprint.version
        with monkeypatch.context() as patch:
            patch.setattr(
                fingerprint, "version", lambda name: self.OLD if name == "numpy" else real(name)
            )
            finish(repository.plan())
        return repository

    @property
    def now(self) -> str:
        found = fingerprint.version("numpy")
        assert found is not None
        return found

    def test_strict(self, repository, why):
        plan = plan_again(repository)
        assert {name for name, job in plan.jobs.items() if "numpy" in job.versions} <= stale(plan)
        assert plan.other_versions == []
        assert why(TRAIN)[1] == f"  package numpy: {self.OLD} -> {self.now}"

    def test_warn(self, repository):
        plan = plan_again(repository, **self.WARN)
        assert stale(plan) == set(), "what is below them, too"
        kept = {name for name, job in plan.jobs.items() if "numpy" in job.program.versions}
        assert {job.name for job in plan.other_versions} == kept
        assert TRAIN in kept and EVALUATE in kept
        for job in plan.jobs.values():
            stamp = read_stamp(repository.root / job.outputs["provenance"])
            assert stamp is not None and stamp.versions == job.versions
        said = versions_warning(plan.other_versions)
        assert said.startswith(f"{len(kept)} results, e.g. {plan.other_versions[0].name}, ")
        assert f"numpy {self.OLD} (now {self.now})" in said

    def test_command(self, repository):
        repository.edit("presets/tiny.yaml", pipeline={"package_versions": "warn"})
        done = command(repository, "--why")
        assert done.stdout == "nothing must run\n"
        assert f"numpy {self.OLD} (now {self.now})" in done.stderr
        repository.edit("presets/tiny.yaml", pipeline={"package_versions": "strict"})
        done = command(repository, "--why", TRAIN)
        assert f"package numpy: {self.OLD} -> {self.now}" in done.stdout
        assert done.stderr == ""

    def test_what_else_changed_is_stale(self, repository, why):
        """And is made with the packages of today, below results of others."""
        edit_sigma(repository)
        plan = plan_again(repository, **self.WARN)
        resample = EVALUATE.replace("evaluate", "resample")
        expected = {
            PREDICT,
            EVALUATE,
            resample,
            "sheet/padim/folder",
            "gallery/padim/folder",
            *LATE,
        }
        expected |= {name.replace("bolt", "nut") for name in expected}
        assert stale(plan) == expected
        assert plan.jobs[PREDICT].versions["numpy"] == self.now
        assert plan.jobs[TRAIN].versions["numpy"] == self.OLD
        finish(plan)
        again = plan_again(repository, **self.WARN)
        assert stale(again) == set()
        assert again.jobs[PREDICT].versions["numpy"] == self.now
        assert TRAIN in stale(plan_again(repository))

    def test_there_and_back(self, repository):
        """The policy itself is in no fingerprint, and looking changes no result."""

        def files() -> dict[Path, tuple[int, int]]:
            found = (repository.root / "results").rglob("*")
            status = {path: path.stat() for path in found if path.is_file()}
            return {path: (one.st_ino, one.st_size) for path, one in status.items()}

        before = files()
        plans = [plan_again(repository, **options) for options in ({}, self.WARN, {}, self.WARN)]
        for plan in plans:
            plan.write()
        seen = [
            ({name: job.fingerprint for name, job in plan.jobs.items()}, stale(plan))
            for plan in plans
        ]
        assert seen[:2] == seen[2:]
        assert seen[0][1] and not seen[1][1]
        assert files() == before

    def test_no_others(self, start, monkeypatch):
        """With the packages that made the results, both policies say the same."""
        monkeypatch.chdir(start.root)
        strict, warn = plan_again(start), plan_again(start, **self.WARN)
        assert warn.other_versions == []
        assert {name: job.fingerprint for name, job in strict.jobs.items()} == {
            name: job.fingerprint for name, job in warn.jobs.items()
        }
