"""HDF5 files of features and anomaly maps: compressed, checksummed, chunked by image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from stages.artifacts.files import StageError

# From HDF5 1.10 on, the file's own structure carries checksums too.
LIBRARY = "v110"
# LZF comes with every h5py and is an order of magnitude faster than gzip; the checksum names a
# damaged chunk when it is read.
FILTERS = {"compression": "lzf", "shuffle": True, "fletcher32": True}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what h5py raises on reading into an error that names the file.

    Raises
    ------
    StageError
        If the file is cut short or damaged.
    """
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        raise StageError(
            f"{path}: truncated or damaged HDF5 file ({error}); delete it and run snakemake again"
        ) from error


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; read from it under :func:`reading`.

    Raises
    ------
    StageError
        If it is missing, or no whole HDF5 file.
    """
    if not path.is_file():
        raise StageError(f"{path}: no such file; run snakemake to make it")
    with reading(path):
        file = h5py.File(path, "r")
    with file:
        yield file


def create_array(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """Create a data set (N, ...) whose chunks are single images; scores (N,) are one chunk."""
    chunks = (1 if shape[1:] else shape[0], *shape[1:]) if shape[0] else None
    options = FILTERS if shape[0] else {}
    return group.create_dataset(name, shape, dtype=dtype, chunks=chunks, **options)


def write_strings(group: h5py.Group, name: str, values: list[str]) -> None:
    """Write a list of UTF-8 strings (N,)."""
    group.create_dataset(name, data=np.array(values, dtype=object), dtype=h5py.string_dtype())


def read_strings(group: h5py.Group, name: str) -> list[str]:
    """Read what :func:`write_strings` wrote."""
    return [value.decode("utf-8") for value in group[name][:]]
