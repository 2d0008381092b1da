"""Run one stage in the warm server (stages/warm.py), as if it ran here.

Usage: python -I -S stages/warm_client.py SOCKET stages.train JOB [OPTIONS]

Standard library only, and little of it: this process is what a job costs beside its work. It ends
with the job's exit code, 128 + n if signal n has killed the job, and 137 if the server is killed.
Whatever ends this process ends the job. Where there is no socket, this process becomes the job.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def connect(path: str) -> socket.socket:
    """Connect to the server.

    Raises
    ------
    OSError
        If nobody listens at ``path``: its message says so.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        # A socket takes its place only once it listens.
        raise OSError("it was killed") from None
    return connection


def main() -> int:
    """Hand over the command line, and wait for the exit code."""
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    path, *words = sys.argv[1:]
    if not os.path.exists(path):
        os.execv(sys.executable, [sys.executable, "-m", *words])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the closed connection tells the server
    request = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    payload = json.dumps(request).encode() + b"\n"
    try:
        with connect(path) as connection:
            socket.send_fds(connection, [payload[:1]], (0, 1, 2))
            connection.sendall(payload[1:])
            code = connection.recv(1)
    except (BrokenPipeError, ConnectionResetError):  # it died while we spoke
        code = b""
    except OSError as error:
        print(f"error: warm server {path}: {error}; run snakemake again", file=sys.stderr)
        return 1
    return code[0] if code else 128 + signal.SIGKILL


if __name__ == "__main__":
    sys.exit(main())
