"""Kill, fill the disk, start twice: one more run gives what an undisturbed one gives.

Kills of single stages and of Snakemake between any two files are in `test_pipeline.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.workflow.mini_repository import Repository
from tests.workflow.running import LATE, assert_clean, of, ran, succeeds, values

pytestmark = pytest.mark.slow

Copied = Callable[[str], Repository]


GONE = (
    *(f"results/{kind}/padim" for kind in ("models", "maps", "metrics", "resampled")),
    *(
        f"results/{kind}"
        for kind in ("leaderboard", "summary", "significance", "figures", "gallery", "report")
    ),
    ".store",
)


def emptied(repository: Repository) -> Repository:
    """Forget PaDiM's results and all that is made of them, and the store."""
    for folder in GONE:
        shutil.rmtree(repository.root / folder)
    return repository


def start(repository: Repository, *words: str) -> subprocess.Popen[str]:
    """Start a command in the background; its output goes to a file."""
    with (repository.root / "output.txt").open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=repository.root, env=repository.environment(),
            stdout=file, stderr=file, text=True,
        )  # fmt: skip


def output(repository: Repository) -> str:
    return (repository.root / "output.txt").read_text()


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process must bring about."""
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end
        time.sleep(0.02)


def kill(process: subprocess.Popen[str], alone: bool = False) -> None:
    """Kill -9 a process, with all that it has started or without."""
    parent = psutil.Process(process.pid)
    for victim in [parent] if alone else [parent, *parent.children(recursive=True)]:
        victim.kill()
    process.wait(30)


def finished(repository: Repository) -> set[str]:
    return {name for name, valid in repository.plan().valid.items() if valid}


@pytest.mark.parametrize(
    "engine", [("snakemake", "--cores", "2"), ("dvc", "repro")], ids=["snakemake", "dvc"]
)
def test_killed_in_the_middle(engine, recorded, copied: Copied):
    """What was finished is not made again, and the numbers are those of an undisturbed run."""
    repository = emptied(copied("killed"))
    process = start(repository, *engine)
    until(lambda: finished(repository) & of("predict", algorithms=["padim"]), process)
    kill(process)  # in whatever it is doing: often just after a stamp, which then counts
    done = finished(repository)
    assert done & of("train", algorithms=["padim"])
    again = succeeds(repository.python("-m", *engine))
    assert ran(again, repository.plan()) & done == set()
    assert values(repository) == values(recorded)
    assert_clean(repository)


def test_engine_killed_alone_leaves_no_worker_behind(copied: Copied):
    """Jobs end with Snakemake, which holds the pipe that they live by."""
    repository = emptied(copied("alone"))
    process = start(repository, "snakemake", "--cores", "2")
    until(lambda: finished(repository) & of("train", algorithms=["padim"]), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("stages.warm" in word for child in children for word in child.cmdline())
    kill(process, alone=True)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    succeeds(repository.snakemake())
    assert_clean(repository)


def test_dead_socket_of_a_killed_run(copied: Copied):
    """A run too small for a server of its own does not look for that of a killed one."""
    repository = copied("dead")
    path = repository.root / ".plan/warm.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))
    assert path.exists()
    succeeds(repository.snakemake("--force", "results/maps/padim/folder/bolt/seed0.h5"))
    assert_clean(repository)


class TestTwoAtOnce:
    """Two runs in one folder: one works, the other says who does."""

    def test_two_snakemakes(self, recorded, copied: Copied):
        repository = emptied(copied("two"))
        both = [start(repository, "snakemake", "--cores", "1") for _ in range(2)]
        codes = [process.wait(240) for process in both]
        assert sorted(code != 0 for code in codes) == [False, True], output(repository)
        winner = both[codes.index(0)]
        assert f"another snakemake runs in this folder (process {winner.pid})" in output(repository)
        assert values(repository) == values(recorded)
        assert_clean(repository)

    def test_dvc_while_snakemake_runs(self, recorded, copied: Copied):
        repository = emptied(copied("dvc"))
        process = start(repository, "snakemake", "--cores", "1")
        until(lambda: finished(repository) & of("train", algorithms=["padim"]), process)
        refused = repository.dvc("repro")
        assert refused.returncode != 0
        said = refused.stdout + refused.stderr
        assert f"another snakemake runs in this folder (process {process.pid})" in said
        assert process.wait(240) == 0
        assert values(repository) == values(recorded)
        assert_clean(repository)


@pytest.fixture
def small_disk(copied: Copied) -> Iterator[tuple[Repository, Callable[[str], None]]]:
    """Put maps on a file system of their own, too small; return a function that sets its size."""
    repository = emptied(copied("disk"))
    maps = repository.root / "results/maps/padim"
    maps.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(maps)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(maps)], check=True)

    try:
        yield repository, resize
    finally:
        subprocess.run(["umount", "--lazy", str(maps)], check=True)


def test_full_disk(small_disk, recorded):
    """Whatever was being written when the disk was full is absent, not half."""
    repository, resize = small_disk
    first = repository.snakemake()
    assert first.returncode != 0
    assert re.search("No space left on device", first.stdout + first.stderr)
    done = finished(repository)
    resize("100m")
    again = succeeds(repository.snakemake())
    assert ran(again, repository.plan()) & done == set()
    assert values(repository) == values(recorded)
    assert_clean(repository)


class TestFlags:
    """Snakemake's own flags keep their meaning."""

    def would(self, repository: Repository, *words: str) -> set[str]:
        return ran(succeeds(repository.snakemake("-n", *words)), repository.plan())

    ONE = "folder/bolt/seed0"

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--forcerun", "predict"], of("predict", "evaluate", "resample", "sheet", "gallery") | LATE),
            (["--forcerun", f"results/maps/padim/{ONE}.h5"],
             {f"predict/padim/{ONE}", f"evaluate/padim/{ONE}", f"resample/padim/{ONE}", "sheet/padim/folder", "gallery/padim/folder", *LATE}),
            (["--forceall", "--until", "features"], of("index", "features") | {"check/folder"}),
            (["--force", f"results/metrics/padim/{ONE}/provenance.json"], {f"evaluate/padim/{ONE}"}),
            ([f"results/metrics/padim/{ONE}/provenance.json"], set()),
        ],
        ids=["rule", "file", "all until", "target", "valid target"],
    )  # fmt: skip
    def test_force(self, recorded, copied: Copied, words, expected):
        assert self.would(copied("flags"), *words) == expected

    def test_forced_metrics_are_computed_anew(self, copied: Copied):
        repository = copied("forced")
        metrics = repository.root / "results/metrics/padim" / self.ONE
        before = {path.name: path.stat().st_ino for path in metrics.iterdir()}
        target = f"results/metrics/padim/{self.ONE}/provenance.json"
        succeeds(repository.snakemake("--force", target))
        after = {path.name: path.stat().st_ino for path in metrics.iterdir()}
        assert all(after[name] != before[name] for name in before)
        assert_clean(repository)

    def test_until_and_one_target(self, copied: Copied):
        repository = copied("until")
        repository.edit("algorithms/padim.yaml", parameters={"regularisation": 0.1})
        trained = of("train", algorithms=["padim"])
        assert self.would(repository, "--until", "train") == trained
        one = f"results/maps/padim/{self.ONE}.h5"
        assert self.would(repository, one) == {
            f"train/padim/{self.ONE}",
            f"predict/padim/{self.ONE}",
        }
        done = succeeds(repository.snakemake("--until", "train"))
        assert ran(done, repository.plan()) == trained
        assert not self.would(repository) & trained

    def test_touch_makes_nothing_valid(self, copied: Copied):
        repository = copied("touch")
        repository.edit("figures.yaml", dpi=60)
        stale = self.would(repository)
        succeeds(repository.snakemake("--touch"))
        assert self.would(repository) == stale == of("sheet") | {"figures/folder"}

    def test_a_dry_run_changes_nothing(self, copied: Copied):
        repository = copied("dry")
        (repository.root / "results/maps/padim" / f"{self.ONE}.h5").unlink()
        repository.edit("figures.yaml", dpi=60)

        def files() -> dict[Path, int]:
            places = ("results", ".store", "data")
            return {
                path: path.stat().st_size
                for place in places
                for path in (repository.root / place).rglob("*")
            }

        before = files()
        assert self.would(repository) == of("sheet") | {"figures/folder"}
        assert files() == before
        assert "1 results will come from .store/" in repository.snakemake("-n").stdout
