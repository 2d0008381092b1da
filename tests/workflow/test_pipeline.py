"""The whole pipeline with the real Snakemake: what runs, what does not, and what a kill costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import psutil
import pytest

from tests.workflow.mini_repository import SIZE, Repository, make_repository
from tests.workflow.running import succeeds

pytestmark = pytest.mark.slow

Done = subprocess.CompletedProcess[str]
RUN = "folder/bolt/seed0"
METRICS = f"results/metrics/padim/{RUN}"
FEATURES = "results/features/tiny/folder/bolt.h5"
MAPS = "results/maps/padim/folder/nut/seed0.h5"
# What a value of long.csv depends on; the rest are times, memory and the commit.
VALUES = [
    "category",
    "algorithm",
    "seed",
    "metric",
    "method",
    "defect_type",
    "value",
    "fingerprint",
]
# Kills its process -9 right before or after a file takes its place; each order is for once.
HOOK = """
import os
orders, replace = os.environ["KILLS"], os.replace

def deadly(source, target, **options):
    for moment in ("before", "after"):
        if moment == "after":
            replace(source, target, **options)
        try:
            os.unlink(os.path.join(orders, moment + "+" + os.fspath(target).replace("/", "+")))
        except FileNotFoundError:
            continue
        os.kill(os.getpid(), 9)

os.replace = deadly
"""


def executed(done: Done) -> set[str]:
    """The messages of the jobs that a run, or a dry run, has started."""
    return set(re.findall(r"^Job \d+: (.+)$", done.stdout + done.stderr, re.MULTILINE))


def values(repository: Repository) -> list[dict]:
    """What the leaderboard says, without what no two runs have in common."""
    table = pd.read_csv(repository.root / "results/leaderboard/folder/long.csv")[VALUES]
    return table.to_dict("records")


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file of features or maps."""
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[:]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compare arrays, not bytes of files: one array may be packed in more than one way."""
    assert set(found) == set(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def times(repository: Repository) -> dict[str, int]:
    """Modification times of all results."""
    return {
        path.relative_to(repository.root).as_posix(): path.stat().st_mtime_ns
        for path in (repository.root / "results").rglob("*")
        if path.is_file()
    }


def touch_everything(repository: Repository) -> None:
    """Give all files a new time, upstream ones the newest."""
    now = time.time()
    files = sorted(path for path in repository.root.rglob("*") if path.is_file())
    for age, path in enumerate(files):
        os.utime(path, (now - age, now - age))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Run the pipeline once, undisturbed; each test leaves it complete."""
    repository = make_repository(tmp_path_factory.mktemp("pipeline") / "repository")
    done = succeeds(repository.snakemake())
    expected = {f"indexing folder/{category}" for category in ("bolt", "nut")}
    expected |= {f"features of folder/{category} by tiny" for category in ("bolt", "nut")}
    expected |= {
        f"{doing} {algorithm} on folder/{category}, seed 0"
        for doing in ("training", "predicting", "evaluating", "resampling")
        for algorithm in ("random", "padim")
        for category in ("bolt", "nut")
    }
    expected |= {f"anomaly maps of {algorithm} on folder" for algorithm in ("random", "padim")}
    expected |= {"checking folder", "leaderboard of folder", "figures of folder"}
    expected |= {"significance on folder", "gallery images of folder", "report of all leaderboards"}
    expected |= {f"gallery maps of {algorithm} on folder" for algorithm in ("random", "padim")}
    expected |= {"summary of all leaderboards"}
    assert executed(done) - {"None"} >= expected
    return repository


@pytest.fixture(scope="module")
def undisturbed(repository: Repository) -> list[dict]:
    """Values of the undisturbed run."""
    return values(repository)


class TestResults:
    """What one command leaves behind."""

    def test_long_table(self, repository):
        folder = repository.root / "results/leaderboard/folder"
        table = pd.read_csv(folder / "long.csv")
        assert np.isfinite(table["value"]).all()
        assert table["value"].between(0, 1).all()
        shown = table[table["primary"] & (table["defect_type"] == "all")]
        assert len(shown) == 2 * 2 * 4  # algorithms, categories, metrics
        assert set(table["defect_type"]) == {"all", "spot", "scratch"}
        assert set(table["good_images"]) == {4}
        means = shown[shown["metric"] == "pixel_auroc"].groupby("algorithm")["value"].mean()
        assert means["padim"] > 0.8
        assert abs(means["random"] - 0.5) < 0.1

    def test_tables_and_leaderboard(self, repository):
        folder = repository.root / "results/leaderboard/folder"
        costs = pd.read_csv(folder / "costs.csv")
        assert len(costs) == 4
        assert (costs["train_seconds"] > 0).all()
        for metric in ("image_auroc", "pixel_auroc", "aupro", "pl"):
            table = pd.read_csv(folder / "tables" / f"{metric}.csv", index_col=0)
            assert list(table.index) == ["bolt", "nut", "mean"]
            assert np.isfinite(table.to_numpy()).all()
        text = (folder / "leaderboard.md").read_text()
        assert text.startswith("# Tiny")
        assert text.index("padim") < text.index("random"), "the better one stands first"

    def test_figures(self, repository):
        folder = repository.root / "results/figures/folder"
        for metric in ("image_auroc", "pixel_auroc", "aupro", "pl"):
            assert (folder / f"leaderboard/{metric}.svg").stat().st_size > 1000
        for algorithm in ("random", "padim"):
            assert list((folder / "sheets" / algorithm).glob("*.png"))

    def test_every_job_is_stamped(self, repository):
        plan = repository.plan()
        assert all(plan.valid.values())
        stamp = json.loads((repository.root / FEATURES).with_suffix(".provenance.json").read_text())
        assert stamp["threads"] == 1
        assert stamp["parameters"]["image_size"] == SIZE


class TestNothingToDo:
    """Times, comments and Snakemake's memory decide nothing."""

    def test_second_run(self, repository):
        before = times(repository)
        done = succeeds(repository.snakemake())
        assert executed(done) == set()
        assert "Nothing to be done" in done.stdout + done.stderr
        assert times(repository) == before

    def test_touched_files_lost_metadata_and_a_comment(self, repository):
        shutil.rmtree(repository.root / ".snakemake")
        shutil.rmtree(repository.root / ".plan")
        repository.replace("algorithms/padim.py", "\n@register", "\n# a comment\n@register")
        touch_everything(repository)
        before = times(repository)
        done = succeeds(repository.snakemake())
        assert executed(done) == set()
        assert times(repository) == before


class TestSomethingToDo:
    """What is missing, broken or stale is remade, and nothing else."""

    def test_removed_maps(self, repository, undisturbed):
        """All below is still valid: the maps that come back are the same."""
        before = times(repository)
        (repository.root / MAPS).unlink()
        assert executed(succeeds(repository.snakemake())) == {
            "predicting padim on folder/nut, seed 0"
        }
        after = times(repository)
        changed = {path for path in before if after[path] != before[path]}
        assert MAPS in changed
        assert all("predict" in path or path.startswith("results/maps") for path in changed)
        assert values(repository) == undisturbed

    def test_truncated_features(self, repository, undisturbed):
        file = repository.root / FEATURES
        before = arrays(file)
        os.truncate(file, file.stat().st_size // 2)
        assert executed(succeeds(repository.snakemake())) == {"features of folder/bolt by tiny"}
        assert_same(arrays(file), before)
        assert values(repository) == undisturbed

    def test_broken_above_and_stale_below(self, repository):
        """A job above that is remade must not hide a stale one far below."""
        maps = repository.root / MAPS
        maps.rename(maps.with_suffix(".kept"))
        figures = repository.read("figures.yaml")
        repository.edit("figures.yaml", dpi=60)
        try:
            assert executed(succeeds(repository.snakemake("-n"))) == {
                "predicting padim on folder/nut, seed 0",
                "figures of folder",
                "anomaly maps of padim on folder",
                "anomaly maps of random on folder",
            }
        finally:
            maps.with_suffix(".kept").rename(maps)
            repository.write("figures.yaml", figures)

    def test_hyperparameter_and_back(self, repository):
        before = repository.read("algorithms/padim.yaml")
        repository.edit("algorithms/padim.yaml", parameters={"regularisation": 0.1})
        try:
            assert executed(succeeds(repository.snakemake("-n"))) == {
                *(f"{doing} padim on folder/{category}, seed 0"
                  for doing in ("training", "predicting", "evaluating", "resampling")
                  for category in ("bolt", "nut")),
                "anomaly maps of padim on folder",
                "gallery maps of padim on folder",
                "significance on folder",
                "report of all leaderboards",
                "leaderboard of folder",
                "figures of folder",
                "summary of all leaderboards",
            }  # fmt: skip
        finally:
            repository.write("algorithms/padim.yaml", before)
        assert executed(succeeds(repository.snakemake("-n"))) == set()

    def test_one_metric_less_and_back(self, repository, undisturbed):
        """Only the file of the metric that comes or goes is touched."""
        folder = repository.root / METRICS
        target = f"{METRICS}/provenance.json"
        kept, gone = folder / "image_auroc.json", folder / "pixel_auroc.json"
        # Snakemake touches a job's outputs; whoever writes a file makes a new one.
        inode, content = kept.stat().st_ino, json.loads(gone.read_text())
        evaluation = {"evaluating padim on folder/bolt, seed 0"}
        fewer = ("metrics=[image_auroc,aupro,pl]",)
        done = succeeds(repository.snakemake(target, config=fewer))
        assert executed(done) == evaluation
        assert not gone.exists()
        assert kept.stat().st_ino == inode
        done = succeeds(repository.snakemake(target))
        assert executed(done) == evaluation
        assert json.loads(gone.read_text()) == content
        assert kept.stat().st_ino == inode
        assert json.loads((folder / "provenance.json").read_text())["measured"]["computed"] == [
            "pixel_auroc"
        ]
        assert all(repository.plan().valid.values())

    def test_one_metrics_parameter(self, repository, undisturbed):
        """A new limit of PL is computed from the maps that are there; all else stays."""
        folder, settings = repository.root / METRICS, repository.read("metrics.yaml")
        before = {path.name: path.stat().st_ino for path in folder.glob("*.json")}
        old = json.loads((folder / "pl.json").read_text())
        repository.edit("metrics.yaml", parameters={"pl": {"iou_limit": 0.6}})
        try:
            done = succeeds(repository.snakemake(f"{METRICS}/provenance.json"))
            assert executed(done) == {"evaluating padim on folder/bolt, seed 0"}
            after = {path.name: path.stat().st_ino for path in folder.glob("*.json")}
            changed = {name for name in before if before[name] != after[name]}
            assert changed == {"pl.json", "provenance.json"}
            new = json.loads((folder / "pl.json").read_text())
            assert new["parameters"]["iou_limit"] == 0.6
            assert new["values"][0]["value"] <= old["values"][0]["value"]
        finally:
            repository.write("metrics.yaml", settings)
        succeeds(repository.snakemake())
        assert values(repository) == undisturbed


# Runs Snakemake, and counts the timers that its scheduler starts.
COUNTING = """
import sys
from snakemake.scheduling.job_scheduler import JobScheduler

start, started = JobScheduler._schedule_reevalutation, []
JobScheduler._schedule_reevalutation = lambda self, delay: started.append(start(self, delay))
from snakemake.cli import main
try:
    main(sys.argv[1:])
finally:
    print(len(started), "timers")
"""


def test_scheduler_looks_only_when_a_job_has_ended(tmp_path: Path) -> None:
    """Snakemake's limit of jobs a second costs more with every job; it is for clusters."""
    repository = make_repository(tmp_path / "repository", ("bolt", "nut"))
    words = ("--cores", "1", "--until", "index", "--config", "preset=tiny")
    done = succeeds(repository.python("-c", COUNTING, *words))
    assert len(re.findall(r"^Job \d+: indexing", done.stdout + done.stderr, re.MULTILINE)) == 2
    assert done.stdout.splitlines()[-1] == "0 timers"


class TestOneAtATime:
    """Two runs in one folder would tread on each other."""

    def test_second_process_is_refused(self, repository):
        code = (
            "import sys; from workflow.plan import lock;"
            "held = lock(); print(1, flush=True); sys.stdin.read()"
        )
        figures = repository.root / "results/figures/folder/leaderboard.provenance.json"
        holder = subprocess.Popen(
            [sys.executable, "-c", code], cwd=repository.root, env=repository.environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            figures.rename(figures.with_suffix(".kept"))
            refused, looked = repository.snakemake(), repository.snakemake("-n")
        finally:
            holder.kill()
            holder.communicate()
            figures.with_suffix(".kept").rename(figures)
        assert refused.returncode != 0
        message = refused.stderr + refused.stdout
        assert f"another snakemake runs in this folder (process {holder.pid})" in message
        assert "Traceback" not in message
        assert executed(refused) == set()
        assert looked.returncode == 0, "a dry run may look on"


def descendants(process: psutil.Process, *words: str) -> list[psutil.Process]:
    """Processes below another whose command line holds some words."""
    found = []
    for child in process.children(recursive=True):
        try:
            command = child.cmdline()
        except psutil.NoSuchProcess:
            continue
        if command[:1] == [sys.executable] and all(
            any(word in part for part in command) for word in words
        ):
            found.append(child)
    return found


def kill_when(process: subprocess.Popen[str], *words: str, everything: bool = False) -> None:
    """Kill -9 the first stage whose command line holds some words, or all with Snakemake."""
    parent, end = psutil.Process(process.pid), time.monotonic() + 120
    while not (found := descendants(parent, *words)):
        assert process.poll() is None, f"ended before {words} began"
        assert time.monotonic() < end
        time.sleep(0.02)
    if everything:
        time.sleep(0.5)  # in the middle of its imports
        found = [parent, *parent.children(recursive=True)]
    for victim in found:
        victim.kill()
    if everything:
        process.wait(30)


class TestKilled:
    """Kill -9 at any moment costs the work of the killed job, and no result."""

    def test_results_are_those_of_an_undisturbed_run(
        self, repository: Repository, undisturbed, tmp_path
    ):
        maps = {
            algorithm: arrays(repository.root / f"results/maps/{algorithm}/{RUN}.h5")
            for algorithm in ("random", "padim")
        }
        repository = make_repository(tmp_path / "repository", categories=["bolt"])
        # Each stage by itself: a forked one has ended before it can be caught.
        repository.edit("presets/tiny.yaml", pipeline={"warm": False})
        orders, hook = tmp_path / "orders", tmp_path / "hook"
        orders.mkdir()
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        environment = repository.environment()
        environment |= {
            "KILLS": str(orders),
            "PYTHONPATH": f"{hook}{os.pathsep}{environment['PYTHONPATH']}",
        }
        log = tmp_path / "log.txt"

        def order(moment: str, path: str) -> None:
            (orders / f"{moment}+{path}".replace("/", "+")).touch()

        def start() -> subprocess.Popen[str]:
            words = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "preset=tiny"]
            with log.open("a") as file:
                return subprocess.Popen(
                    words, cwd=repository.root, env=environment, stdout=file, stderr=file, text=True
                )

        # Right before and right after a file or a folder takes its place, before the stamp.
        order("before", FEATURES)  # is tried again by itself
        order("before", f"results/models/random/{RUN}/model")
        order("after", f"results/models/padim/{RUN}/model")
        assert start().wait(200) != 0
        assert not list(orders.iterdir()), log.read_text()
        # At a stage's start, between two outputs, and right before the stamp.
        order("before", f"results/maps/random/{RUN}.h5")
        order("after", f"results/metrics/random/{RUN}/image_auroc.json")
        process = start()
        kill_when(process, "stages.train", "padim")
        assert process.wait(200) != 0
        assert not list(orders.iterdir()), log.read_text()
        order("before", f"results/models/padim/{RUN}/provenance.json")
        assert start().wait(200) != 0
        assert not list(orders.iterdir()), log.read_text()
        # Snakemake itself, with all that it has started.
        process = start()
        kill_when(process, "stages.predict", "padim", everything=True)
        assert not (repository.root / f"results/maps/padim/{RUN}.h5").exists()
        assert start().wait(200) == 0, log.read_text()
        assert values(repository) == [row for row in undisturbed if row["category"] == "bolt"]
        for algorithm, expected in maps.items():
            assert_same(arrays(repository.root / f"results/maps/{algorithm}/{RUN}.h5"), expected)
        assert all(repository.plan().valid.values())
        assert not list((repository.root / "results").rglob(".*.tmp-*")), "nothing half is left"
        assert not list((repository.root / "results").rglob("checkpoint"))
