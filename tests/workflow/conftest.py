"""Small copies of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflow.mini_repository import Repository, make_repository

CATEGORIES = ("bolt", "nut")
ALGORITHMS = ("random", "padim", "patchcore")
SEEDS = (0, 1)
PATCHCORE = {
    "algorithm": "patchcore",
    "backbone": "tiny",
    "layers": ["stride4", "stride8"],
    "parameters": {"pretrain_dimension": 32, "target_dimension": 32},
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Copy the repository, with the preset tiny on two drawn categories."""
    return make_repository(tmp_path / "repository", CATEGORIES)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Make everything once, under Git and DVC: recorded, committed, pushed to a remote folder.

    Not to be changed: work on a :func:`copied` one.
    """
    if shutil.which("git") is None:
        pytest.skip("needs Git")
    folder = tmp_path_factory.mktemp("recorded")
    os.environ["DVC_SITE_CACHE_DIR"] = str(folder / "site")
    repository = make_repository(folder / "repository", CATEGORIES)
    repository.write("algorithms/patchcore.yaml", PATCHCORE)
    repository.edit("benchmark.yaml", algorithms=list(ALGORITHMS))
    repository.edit("presets/tiny.yaml", seeds=list(SEEDS))
    repository.version()
    for done in (
        repository.dvc("remote", "add", "-d", "store", str(folder / "remote")),
        repository.snakemake(),
        repository.dvc("push"),
    ):
        assert done.returncode == 0, done.stdout + done.stderr
    repository.commit("results")
    return repository


@pytest.fixture
def copied(recorded: Repository, tmp_path: Path) -> Callable[[str], Repository]:
    """Return a function that copies ``recorded`` with its results, hard links and times."""

    def copy(name: str = "copy") -> Repository:
        target = tmp_path / name
        subprocess.run(["cp", "-a", str(recorded.root), str(target)], check=True)
        return Repository(target)

    return copy
