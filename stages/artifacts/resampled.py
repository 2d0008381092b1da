"""What the metrics of one (algorithm, category, seed) are on resamples of its test images.

One HDF5 file: attributes ``algorithm``, ``dataset``, ``category``, ``seed``, ``good_images``,
``defective_images``; for each metric a data set of its name, (B,) float64 or empty, with the
attributes ``value`` (as in the metric's own file), ``reason`` (why there are no replicates; empty
if there are), ``fingerprint`` (of this metric alone) and ``influence`` (N,), by how much each image
lifts the value, in the order of sorted image ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stages.artifacts.files import atomic_path
from stages.artifacts.hdf5 import FILTERS, LIBRARY, open_hdf5, reading

KEY = ("algorithm", "dataset", "category", "seed")


@dataclass(frozen=True, eq=False)
class Replicates:
    """One metric's value on the images, and on B resamples of them."""

    value: float
    values: np.ndarray  # (B,) float64; empty where there are none
    influence: np.ndarray  # (N,) float64, of the images by sorted ids; empty where there are none
    reason: str | None
    fingerprint: str


@dataclass(frozen=True, eq=False)
class ResampledRun:
    """The replicates of one run, by metric."""

    key: Mapping[str, str]
    good_images: int
    defective_images: int
    metrics: Mapping[str, Replicates]


def write_resampled(path: Path, run: ResampledRun) -> None:
    """Write replicates atomically; the same give the same bytes."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w", libver=LIBRARY) as file:
        for name in KEY:
            file.attrs[name] = run.key[name]
        file.attrs["good_images"] = run.good_images
        file.attrs["defective_images"] = run.defective_images
        for name, one in sorted(run.metrics.items()):
            size = one.values.size
            options = {**FILTERS, "chunks": (size,)} if size else {}
            data = file.create_dataset(name, (size,), dtype="float64", data=one.values, **options)
            data.attrs["value"] = one.value
            data.attrs["reason"] = one.reason or ""
            data.attrs["fingerprint"] = one.fingerprint
            data.attrs["influence"] = one.influence


def read_resampled(path: Path) -> ResampledRun:
    """Read replicates.

    Raises
    ------
    StageError
        If the file is missing, cut short or damaged.
    """
    with open_hdf5(path) as file, reading(path):
        metrics = {
            name: Replicates(
                float(data.attrs["value"]),
                np.asarray(data[:]),
                np.asarray(data.attrs["influence"]),
                str(data.attrs["reason"]) or None,
                str(data.attrs["fingerprint"]),
            )
            for name, data in file.items()
        }
        key = {name: str(file.attrs[name]) for name in KEY}
        good, defective = (int(file.attrs[f"{kind}_images"]) for kind in ("good", "defective"))
        return ResampledRun(key, good, defective, metrics)
