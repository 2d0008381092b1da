"""Files that are whole or absent, and errors meant for people."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class StageError(Exception):
    """What is wrong, where, and what to do about it: shown without a traceback."""


def _temporaries(path: Path) -> Iterator[Path]:
    yield from path.parent.glob(f".{path.name}.tmp-*")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place, flushed, when the block ends.

    A block that fails or is killed leaves ``path`` as it was; what killed runs left is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in _temporaries(path):
        remove(leftover)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        _flush(temporary)
        if path.is_dir():  # a folder cannot be replaced in one step, but goes as a whole
            os.replace(path, path.with_name(f".{path.name}.tmp-old"))
        os.replace(temporary, path)
        remove(path.with_name(f".{path.name}.tmp-old"))
        _flush(path.parent)
    finally:
        remove(temporary)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def images_in(folder: Path) -> list[Path]:
    """List the images below a folder, however deep, sorted; hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; ``nan`` is refused (write null and a reason)."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises
    ------
    StageError
        If the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run snakemake to make it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(f"{path}: not JSON ({error}); delete it and run snakemake again") from None
