"""Anomaly maps and image scores of one (algorithm, category, seed), in one HDF5 file.

``maps/<method>`` (N, H, W) float32, ``scores/<method>`` (N,) float64, ``ids`` (N,). Labels and
masks are not in it: metrics join them from the index by id.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stages.artifacts.files import StageError, atomic_path
from stages.artifacts.hdf5 import (
    LIBRARY,
    create_array,
    open_hdf5,
    read_strings,
    reading,
    write_strings,
)


@dataclass(frozen=True)
class MapsInfo:
    """What a file of maps holds."""

    ids: list[str]
    map_methods: list[str]
    score_methods: list[str]
    primary_map: str
    primary_score: str


def write_maps(
    path: Path,
    ids: list[str],
    maps: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    primary: tuple[str, str],
) -> None:
    """Write maps {method: (N, H, W)} and scores {method: (N,)} atomically."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w", libver=LIBRARY) as file:
        file.attrs["primary_map"], file.attrs["primary_score"] = primary
        write_strings(file, "ids", ids)
        groups = {kind: file.create_group(kind) for kind in ("maps", "scores")}
        for method, array in maps.items():
            create_array(groups["maps"], method, array.shape, "float32")[:] = array
        for method, values in scores.items():
            create_array(groups["scores"], method, values.shape, "float64")[:] = values


def read_info(path: Path) -> MapsInfo:
    """Read ids and methods without the maps."""
    with open_hdf5(path) as file, reading(path):
        return MapsInfo(
            read_strings(file, "ids"),
            list(file["maps"]),
            list(file["scores"]),
            str(file.attrs["primary_map"]),
            str(file.attrs["primary_score"]),
        )


def read_maps(path: Path, method: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Read one method's maps (N, H, W) float32, or only those of ``rows``."""
    with open_hdf5(path) as file, reading(path):
        if method not in file["maps"]:
            raise StageError(f"{path}: no map method {method}; it holds {', '.join(file['maps'])}")
        if rows is None:
            return np.asarray(file["maps"][method][:])
        return np.stack([file["maps"][method][row] for row in rows])


def read_scores(path: Path, method: str) -> np.ndarray:
    """Read one method's image scores (N,) float64."""
    with open_hdf5(path) as file, reading(path):
        return np.asarray(file["scores"][method][:])
