"""Warm server: imports torch and all stages once, and forks a process for each job on the CPU.

Usage: python -m stages.warm SOCKET < PIPE

It lives as long as somebody holds the pipe's other end; no job outlives it, nor its own client
(`stages/warm_client.py`), whose command line, folder, environment and standard streams it has. The
server's are: the code, as it stood at its start; what libraries read from the environment on
import; limits and priority. Nothing may compute before the fork: no pool of threads survives it.

A job's seconds hold no imports. Its peak memory counts pages that it shares with the server, and
not those parts of libraries that it never touches.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

from stages.command import THREAD_VARIABLES

GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, Windows' below Linux, AMD's
PACKAGES = ("stages", "algorithms", "visionad_metrics")
# What libraries import only where they use it.
LAZY = ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "pyarrow.dataset",
        "pyarrow.pandas_compat", "pyarrow.parquet", "tabulate", "threadpoolctl")  # fmt: skip
# Some start threads on import. Each job has its own number of them (stages/command.py).
QUIET = dict.fromkeys(THREAD_VARIABLES, "1") | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
PR_SET_PDEATHSIG = 1

Jobs = dict[int, tuple[int, socket.socket]]  # process and connection, by the latter's descriptor


def serves(device: str) -> bool:
    """Tell, without torch, whether jobs of a device (auto, cpu, cuda) may run in the server."""
    gpu = any(Path(path).exists() for path in GPUS)
    return sys.platform == "linux" and (device == "cpu" or (device == "auto" and not gpu))


def start(path: Path) -> subprocess.Popen[bytes]:
    """Start a server in this folder; it ends with this process or as its ``stdin`` is closed.

    It listens when this returns, and imports while the first clients wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a killed server's, which clients would take for this one's
    server = subprocess.Popen([sys.executable, "-m", "stages.warm", path], stdin=subprocess.PIPE)
    while not path.exists() and server.poll() is None:
        time.sleep(0.01)
    return server


def command(path: Path) -> list[str]:
    """Words that run, in the server, the module and arguments after them."""
    client = Path(__file__).with_name("warm_client.py")
    return [sys.executable, "-I", "-S", str(client), str(path)]


def preload() -> None:
    """Import all that stages import."""
    names = [*LAZY]
    for package in map(importlib.import_module, PACKAGES):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.", lambda _: None)
        names += [module.name for module in found]
    for name in names:
        with contextlib.suppress(Exception):  # the job that needs it shall say what is wrong
            importlib.import_module(name)


def listen(path: Path) -> socket.socket:
    """Make a socket that is this user's alone, and in its place only once it listens."""
    listener = socket.socket(socket.AF_UNIX)
    temporary, mask = f"{path}.{os.getpid()}", os.umask(0o077)
    listener.bind(temporary)
    os.umask(mask)
    listener.listen(socket.SOMAXCONN)
    os.replace(temporary, path)
    return listener


def serve(listener: socket.socket, lifeline: int) -> None:
    """Fork a job for each client, until ``lifeline`` ends; then end all jobs."""
    jobs: Jobs = {}
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    poll = select.poll()
    for source in (lifeline, woken.fileno(), listener.fileno()):
        poll.register(source, select.POLLIN)
    try:
        while True:
            source, _ = poll.poll()[0]  # one at a time: it may close what the next speaks of
            if source == lifeline:
                if not os.read(lifeline, 4096):
                    return
            elif source == woken.fileno():
                if signal.SIGTERM in woken.recv(4096):
                    return
                reap(jobs, poll)
            elif source == listener.fileno():
                connection, _ = listener.accept()
                others = [other for _, other in jobs.values()]
                try:
                    process = fork(connection, [listener, woken, waker, *others])
                except OSError as error:  # memory or processes are short
                    print(f"stages.warm: no process for a job: {error}", file=sys.stderr)
                    connection.close()
                else:
                    jobs[connection.fileno()] = process, connection
                    poll.register(connection, 0)  # its end only: the job reads what comes
            else:  # a client has ended; reaping follows
                poll.unregister(source)
                os.kill(jobs[source][0], signal.SIGKILL)
    finally:
        for process, _ in jobs.values():
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def reap(jobs: Jobs, poll: select.poll) -> None:
    """Tell clients the exit codes of jobs that have ended; 128 + n for signal n, as a shell."""
    for source, (process, connection) in list(jobs.items()):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(KeyError, OSError):  # the client has ended
                poll.unregister(source)
                connection.send(bytes([code if code >= 0 else 128 - code]))
            connection.close()
            del jobs[source]


def fork(connection: socket.socket, inherited: list[socket.socket]) -> int:
    """Start the process of a client's job, and return its number; the job does not return."""
    server = os.getpid()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for each in inherited:
            each.close()
        os.setsid()  # a terminal's Ctrl-C is for the client, whose end is the job's
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == server:
            code = work(connection)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def work(connection: socket.socket) -> int:
    """Take the client's place, and return its exit code."""
    with connection, connection.makefile() as rest:
        first, streams, _, _ = socket.recv_fds(connection, 1, 3)
        line = first.decode() + rest.readline()
    if not line.endswith("\n"):
        return 1  # the client was killed as it spoke
    request = json.loads(line)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"], CUDA_VISIBLE_DEVICES="")  # CPU only
    code = run(*request["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run(module: str, *arguments: str) -> int:
    """Do what ``python -m module arguments`` does, by Python's own function for it."""
    sys.argv = ["-m", *arguments]
    sys.modules.pop(module, None)  # it is run as a program
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        runpy._run_module_as_main(module)  # type: ignore[attr-defined]
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        if error.__traceback__:
            error.__traceback__ = error.__traceback__.tb_next  # without this function
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def main() -> None:
    """Serve at the socket that the command line names."""
    path = Path(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the lifeline ends it
    listener = listen(path)
    own = path.stat().st_ino
    try:
        os.environ.update(QUIET)
        preload()
        gc.collect()
        gc.freeze()  # else a job's garbage collection would copy what it shares
        serve(listener, sys.stdin.fileno())
    finally:
        if path.exists() and path.stat().st_ino == own:  # not the next server's
            path.unlink()


if __name__ == "__main__":
    main()
