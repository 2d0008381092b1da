"""Run a notebook in a copy of the repository, and keep what its cells put out.

python notebooks/execute.py notebooks/new_algorithm.ipynb

A copy, since the notebook saves an algorithm. The same notebook gives the same bytes: no times, no
paths, no numbers of runs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("params", "algorithms", "metrics", "stages", "workflow", "tests", "notebooks",
         "pyproject.toml", "data/.gitignore")  # fmt: skip
CELL_SECONDS = 600


def copy_repository(target: Path) -> None:
    """Copy what a notebook needs of the repository; no data, no results."""
    for room in ROOMS:
        source = ROOT / room
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
            shutil.copytree(source, target / room, ignore=ignored)
        else:
            (target / room).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / room)


def execute(notebook: Path, root: Path) -> Any:
    """Run a notebook, its imports from the repository at ``root``; return it with its outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        content,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(root / "notebooks")}},
    )
    paths = os.pathsep.join([str(root), str(root / "metrics")])
    client.execute(env={**os.environ, "PYTHONPATH": paths})
    content.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return content


def main() -> None:
    """Execute the notebooks that the command line names, in place."""
    for notebook in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            copy_repository(Path(folder))
            nbformat.write(execute(notebook, Path(folder)), notebook)


if __name__ == "__main__":
    main()
