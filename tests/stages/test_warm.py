"""The warm server: jobs say, return and write what they would in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from stages import warm, warm_client
from tests.workflow.mini_repository import ROOT, Repository, make_repository

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server is Linux's")

LIGHT = "from stages import warm; warm.preload = lambda: None; warm.main()"
PARENT = """
import subprocess, sys
server = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdin=subprocess.PIPE)
print(server.pid, flush=True)
sys.stdin.read()
"""
MODULES = {
    "waits": "import os, signal; print(os.getpid(), flush=True); signal.pause()",
    "dies": "import os, sys; print('last', flush=True); os.kill(os.getpid(), int(sys.argv[1]))",
    "meets": "import sys; open(*sys.argv[1:]).close()",
    "ends": "import sys; print('no newline', end=''); sys.exit(int(sys.argv[1]))",
    "says": "import sys; sys.exit('error: said')",
    "fails": "def f():\n    try:\n        1 / 0\n    except OSError: pass\n    except ValueError: pass\ntry:\n    int('x')\nexcept ValueError: f()",
    "shows": "import os, sys\nprint(__name__, __file__, __spec__.name, sys.argv, os.getcwd(), os.isatty(1),"
    " os.environ['WORD'], os.environ.get('OMP_NUM_THREADS'), sys.stdin.read(),\n      os.listdir('/proc/self/fd'))\nprint('e', file=sys.stderr)",
    "threads": "import os, time, json, torch\n"
    "from threadpoolctl import threadpool_info\n"
    "from stages.command import limit_threads\nfrom stages.devices import prepare\n"
    "seconds = time.process_time(); limit_threads(2); device = prepare('auto', 2)\n"
    "print(json.dumps([seconds, device.type, os.environ['CUDA_VISIBLE_DEVICES'], torch.get_num_threads(),\n"
    "                  *(pool['num_threads'] for pool in threadpool_info())]))",
}
JOBS = ("features/tiny/folder/bolt", "train/padim/folder/bolt/seed0",
        "predict/padim/folder/bolt/seed0", "train/fastflow2d/folder/bolt/seed0")  # fmt: skip


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, which it must within half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def gone(process: int) -> bool:
    """Tell whether a process has ended; whether init has noticed is not ours."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Server:
    """A server's process, and ways to run a module in it and beside it."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.path, self.process, self.folder = path, process, folder
        self.environment = {
            **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'metrics'}", "WORD": "word",
            "COLUMNS": "80", "PYTHONUNBUFFERED": "",
        }  # fmt: skip

    def client(self, *words: str) -> subprocess.Popen[str]:
        """Start a client."""
        return subprocess.Popen(
            [*warm.command(self.path), *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run a job: its exit code, standard output and error."""
        client = self.client(*words)
        out, err = client.communicate("input", timeout=60)
        return client.returncode, out, err

    def cold(self, *words: str) -> tuple[int, str, str]:
        """Run the same in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=self.folder,
            env=self.environment,
            input="input",
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    def jobs(self) -> list[psutil.Process]:
        """Children of the server, zombies too."""
        return psutil.Process(self.process.pid).children()

    def started(self) -> tuple[subprocess.Popen[str], int]:
        """Start a client whose job waits: the client, and the job's process."""
        client = self.client("waits")
        assert client.stdout
        return client, int(client.stdout.readline())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Start a server that has imported nothing."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    server = Server(tmp_path / "socket", None, tmp_path)  # type: ignore[arg-type]
    server.process = subprocess.Popen(
        [sys.executable, "-c", LIGHT, server.path],
        cwd=tmp_path,
        env=server.environment,
        stdin=subprocess.PIPE,
    )
    until(server.path.exists)
    yield server
    server.process.kill()
    server.process.communicate()


@pytest.mark.parametrize(
    "words",
    [
        ["stages.train", "--help"],
        ["stages.train", "nothing.json", "--threads", "1"],
        ["stages.train", "a", "--device", "x"],
        ["stages.nothing"],
        ["shows", "a b", "é"],
        ["ends", "0"],
        ["ends", "3"],
        ["ends", "300"],
        ["says"],
        ["fails"],
    ],
    ids=" ".join,
)
def test_says_and_returns_what_a_process_of_its_own_does(server: Server, words: list[str]) -> None:
    assert server.run(*words) == server.cold(*words)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_code_of_a_killed_job_is_a_shells(server: Server, number: int) -> None:
    assert server.run("dies", str(int(number))) == (128 + number, "last\n", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_clients_end_is_its_jobs(server: Server, number: int) -> None:
    (client, job), (other, other_job) = server.started(), server.started()
    client.send_signal(number)
    assert client.wait(30) == -number
    until(lambda: gone(job))
    assert not gone(other_job)
    assert os.getsid(other_job) == other_job  # out of a terminal's reach
    assert server.run("ends", "4")[0] == 4
    other.kill()
    until(lambda: not server.jobs())


def test_two_at_a_time(server: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # opens when both ends do
    clients = [server.client("meets", "fifo", mode) for mode in "rw"]
    assert [client.wait(30) for client in clients] == [0, 0]


def test_half_a_request_holds_nobody_up(server: Server) -> None:
    halves = []
    for words in (b"", b"{", b'{"words": ["ends"'):
        halves.append(warm_client.connect(str(server.path)))
        halves[-1].sendall(words)
    assert server.run("ends", "5")[0] == 5
    assert len(server.jobs()) == len(halves)
    for half in halves:
        half.close()
    until(lambda: not server.jobs())
    assert server.run("ends", "6")[0] == 6


def test_nonsense_is_an_error(server: Server) -> None:
    with warm_client.connect(str(server.path)) as connection:
        socket.send_fds(connection, [b"n"], [os.open(os.devnull, os.O_RDWR)] * 3)
        connection.sendall(b"onsense\n")
        assert connection.recv(1) == b"\1"
    assert server.run("ends", "5")[0] == 5


def test_many_jobs_leave_nothing(server: Server) -> None:
    server.run("ends", "0")
    before = psutil.Process(server.process.pid).num_fds()
    for code in range(25):
        assert server.run("ends", str(code))[0] == code
    until(lambda: not server.jobs())
    assert psutil.Process(server.process.pid).num_fds() == before


@pytest.mark.parametrize("end", ["lifeline", "SIGTERM", "SIGKILL"])
def test_the_servers_end_is_everybodys(server: Server, end: str) -> None:
    client, job = server.started()
    if end == "lifeline":
        assert server.process.stdin
        server.process.stdin.close()
        server.process.stdin = None
    else:
        server.process.send_signal(getattr(signal, end))
    assert client.wait(30) == 137
    until(lambda: gone(job))
    assert server.process.wait(30) == (-9 if end == "SIGKILL" else 0)
    assert server.path.exists() == (end == "SIGKILL")
    if end == "SIGKILL":
        code, _, message = server.run("ends", "0")
        assert code == 1
        assert f"warm server {server.path}: it was killed" in message


def test_the_parents_end_is_everybodys(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "second"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, LIGHT, path],
        cwd=tmp_path,
        env=server.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout
        process = int(parent.stdout.readline())
        until(path.exists)
        client, job = Server(path, parent, tmp_path).started()
        parent.kill()
    assert client.wait(30) == 137
    until(lambda: gone(job) and gone(process))
    assert not path.exists()


def test_a_client_without_server_is_the_job_itself(tmp_path: Path) -> None:
    words = [*warm.command(tmp_path / "none"), "platform"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    own = subprocess.run([sys.executable, "-m", "platform"], capture_output=True, text=True)
    assert done.stdout == own.stdout != ""


def test_nobody_else_may_connect(server: Server) -> None:
    server.run("ends", "0")
    assert server.path.stat().st_mode & 0o077 == 0


def test_serves_the_cpu_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "GPUS", (tmp_path / "none",))
    assert [warm.serves(device) for device in ("cpu", "auto", "cuda")] == [True, True, False]
    monkeypatch.setattr(warm, "GPUS", (tmp_path,))
    assert [warm.serves(device) for device in ("cpu", "auto", "cuda")] == [True, False, False]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Plan two algorithms on one category, and index it."""
    repository = make_repository(tmp_path_factory.mktemp("warm") / "repository", ["bolt"])
    fastflow = {"algorithm": "fastflow2d", "epochs": 2, "parameters": {}}
    fastflow = repository.read("algorithms/padim.yaml") | fastflow
    repository.write("algorithms/fastflow2d.yaml", fastflow)
    repository.edit("presets/tiny.yaml", algorithms=["padim", "fastflow2d"])
    (repository.root / "threads.py").write_text(MODULES["threads"])
    repository.write_plan()
    assert repository.stage("index/folder/bolt").returncode == 0
    return repository


@pytest.fixture(scope="module")
def full(repository: Repository) -> Iterator[Server]:
    """Start a server as Snakemake does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.root)
        for name, value in repository.environment().items():
            patch.setenv(name, value)
        path = Path(".plan/warm.sock")
        server = Server(path, warm.start(path), repository.root)
        server.environment = repository.environment()
    yield server
    server.process.communicate()
    assert server.process.returncode == 0


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of all results."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path}:{name}": array for name, array in load_file(path).items()}
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path) as file:
            names: list[str] = []
            file.visit(names.append)
            found |= {
                f"{path}:{n}": file[n][()] for n in names if isinstance(file[n], h5py.Dataset)
            }
    return found


@pytest.mark.slow
def test_results_are_those_of_a_process_of_its_own(full: Server, repository: Repository) -> None:
    def work(run: Callable[..., tuple[int, str, str]]) -> dict[str, np.ndarray]:
        for job in JOBS:
            stage = f"stages.{job.split('/')[0]}"
            assert run(stage, f".plan/{job}.json", "--threads", "1") == (0, "", "")
        return arrays(results)

    results = repository.root / "results"
    warm_arrays = work(full.run)
    stamps = [json.loads(p.read_text())["measured"] for p in results.rglob("*provenance.json")]
    cold_arrays = work(full.cold)
    assert len(warm_arrays) > 8
    assert set(warm_arrays) == set(cold_arrays)
    for name, array in warm_arrays.items():
        np.testing.assert_array_equal(array, cold_arrays[name], err_msg=name, strict=True)
    for measured in stamps:
        assert 0 < measured["cpu_seconds"] <= measured["wall_seconds"] + 0.1
        assert 2**26 < measured["peak_rss_bytes"] < 2**31


@pytest.mark.slow
def test_a_job_starts_afresh_and_quiet(full: Server) -> None:
    code, out, err = full.run("threads")
    assert (code, err) == (0, "")
    seconds, *rest = json.loads(out)
    assert seconds < 1  # processor time: the server's own, of its imports, is more
    assert rest[:2] == ["cpu", ""]
    assert len(rest) > 4
    assert set(rest[2:]) == {2}
    assert psutil.Process(full.process.pid).num_threads() == 1
