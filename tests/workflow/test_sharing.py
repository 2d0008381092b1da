"""Two machines and a remote: what one has made is whole on the other, and the other way round.

Machine A makes the results, pushes files to a DVC remote (a folder, or S3 as a local server speaks
it) and commits to a bare Git repository; machine B clones and pulls. `docs/sharing.md` tells users
what is tested here.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workflow.mini_repository import Repository, make_repository, recolour
from tests.workflow.running import LATE, assert_clean, of, ran, succeeds, values

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="needs Git"),
]

HOST, BUCKET = "127.0.0.1", "benchmark"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_PROXY": HOST,
    "no_proxy": HOST,
}
SERVER_SECONDS = 60
TRAINED = ("train", "predict", "evaluate", "resample", "sheet", "gallery")

Words = tuple[str, ...]


def jobs(*stages: str, algorithms: tuple[str, ...] = ("random", "padim")) -> set[str]:
    """Names of the jobs of some stages, for the one category and seed of this run."""
    return of(*stages, algorithms=algorithms, categories=["bolt"], seeds=[0])


EVERYTHING = jobs("index", "features", *TRAINED) | {"check/folder", "pictures/folder"} | LATE


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep DVC's machine-wide notes and the user's own settings of S3 out of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site"))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            (folder / name).touch()
            patch.setenv(name, str(folder / name))
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Make everything once, recorded and committed; to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    repository = make_repository(folder / "repository", categories=["bolt"])
    repository.version()
    done = succeeds(repository.snakemake())
    assert ran(done, repository.plan()) == EVERYTHING
    repository.commit("results")
    return repository


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + SERVER_SECONDS
    while True:
        assert server.poll() is None, f"the S3 server has ended: {log.read_text()}"
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end, f"the S3 server does not answer: {log.read_text()}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def s3(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start an S3 server on this machine, with a bucket; the address."""
    pytest.importorskip("dvc_s3", reason="needs DVC's S3 remote: pip install '.[dev]'")
    pytest.importorskip("moto.server", reason="needs an S3 server: pip install '.[dev]'")
    boto3 = pytest.importorskip("boto3")
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log.txt"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", HOST, "--port", str(port)],
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(port, server, log)
        address = f"http://{HOST}:{port}"
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
        yield address
    finally:
        server.kill()
        server.wait(30)


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> list[Words]:
    """Return the `dvc remote` commands that a user would give."""
    if request.param == "folder":
        return [("add", "--default", "store", str(tmp_path / "store"))]
    address = request.getfixturevalue("s3")
    return [
        ("add", "--default", "store", f"s3://{BUCKET}/{tmp_path.name}"),
        ("modify", "store", "endpointurl", address),
    ]


@pytest.fixture
def published(finished: Repository, tmp_path: Path) -> Callable[[list[Words]], Repository]:
    """Return a function that makes machine A, which has pushed everything to a remote."""

    def publish(remote: list[Words]) -> Repository:
        subprocess.run(["cp", "-a", str(finished.root), str(tmp_path / "a")], check=True)
        a, meeting = Repository(tmp_path / "a"), str(tmp_path / "meeting.git")
        for words in remote:
            succeeds(a.dvc("remote", *words))
        a.git("init", "--quiet", "--bare", "--initial-branch", "main", meeting)
        a.git("remote", "add", "origin", meeting)
        publish_again(a, "a remote")
        return a

    return publish


@pytest.fixture
def machine_a(published: Callable[[list[Words]], Repository], tmp_path: Path) -> Repository:
    """Machine A, with a folder as the remote."""
    return published([("add", "--default", "store", str(tmp_path / "store"))])


def publish_again(repository: Repository, title: str) -> None:
    """Push what a machine has now, as a user would."""
    succeeds(repository.dvc("push"))
    repository.commit(title)
    repository.git("push", "--quiet", "--set-upstream", "origin", "main")


def clone(a: Repository) -> Repository:
    """Machine B, which has only what Git holds."""
    target = a.root.with_name("b")
    a.git("clone", "--quiet", str(a.root.with_name("meeting.git")), str(target))
    return Repository(target)


def assert_in_sync(repository: Repository) -> None:
    """What dvc.lock names is in the remote."""
    done = succeeds(repository.dvc("status", "--cloud"))
    assert "Cache and remote 'store' are in sync." in done.stdout, done.stdout


def test_there_and_back(
    remote: list[Words], published: Callable[[list[Words]], Repository]
) -> None:
    a = published(remote)
    start = values(a)
    b = clone(a)
    succeeds(b.dvc("pull"))
    assert_clean(b)
    assert_in_sync(b)
    assert b.git("status", "--short") == "", "pulling leaves nothing to commit"
    assert values(b) == start

    b.edit("algorithms/padim.yaml", parameters={"regularisation": 0.1})
    done = succeeds(b.snakemake())
    assert ran(done, b.plan()) == jobs(*TRAINED, algorithms=("padim",)) | LATE
    assert_clean(b)
    publish_again(b, "another regularisation")
    assert_in_sync(b)
    edited = values(b)
    changed = [old["algorithm"] for old, new in zip(start, edited, strict=True) if old != new]
    assert set(changed) == {"padim"}

    a.git("pull", "--quiet", "--ff-only")
    succeeds(a.dvc("pull"))
    assert_clean(a)
    assert values(a) == edited

    a.git("checkout", "--quiet", "HEAD~1")
    succeeds(a.dvc("checkout"))
    assert_clean(a)
    assert values(a) == start


def test_an_image_travels_too(machine_a: Repository) -> None:
    """A run records data sets that have changed; the other machine gets images and results."""
    mask = Path("data/parts/bolt/ground_truth/spot/001_mask.png")
    b = clone(machine_a)
    succeeds(b.dvc("pull"))
    recolour(b.root / mask)
    done = succeeds(b.snakemake())
    assert (
        ran(done, b.plan())
        == jobs("index", "evaluate", "resample", "sheet", "gallery")
        | {"check/folder", "pictures/folder"}
        | LATE
    )
    assert_clean(b)
    publish_again(b, "another mask")

    machine_a.git("pull", "--quiet", "--ff-only")
    succeeds(machine_a.dvc("pull"))
    assert (machine_a.root / mask).read_bytes() == (b.root / mask).read_bytes()
    assert_clean(machine_a)
    assert values(machine_a) == values(b)


def test_a_clone_says_that_it_must_pull(machine_a: Repository) -> None:
    b = clone(machine_a)
    done = b.snakemake("-n")
    assert done.returncode != 0
    message = done.stdout + done.stderr
    assert (
        f"datasets.folder: root {b.images} is not a folder; parts.dvc is there: run dvc pull"
        in message
    )
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("target", "there"),
    [
        ("evaluate@padim", jobs("evaluate", "resample", algorithms=("padim",))),
        ("aggregate", {"aggregate/folder", "compare/folder", "summary"}),
    ],
)
def test_a_part(target: str, there: set[str], machine_a: Repository) -> None:
    """What was not pulled counts as lost, and would be remade; `dvc repro --pull` brings it."""
    b = clone(machine_a)
    succeeds(b.dvc("pull", target, "data/parts.dvc"))
    plan = b.plan()
    assert {name for name, valid in plan.valid.items() if valid} == there
    assert ran(succeeds(b.snakemake("-n")), plan) == EVERYTHING - there
    assert ran(succeeds(b.dvc("repro", "--pull")), plan) == set()
    assert_clean(b)
    assert b.git("status", "--short") == ""
    assert values(b) == values(machine_a)
