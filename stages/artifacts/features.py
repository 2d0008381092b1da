"""Cached backbone features of one category: ``<split>/<layer>`` (N, C, H, W) in one HDF5 file."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import h5py
import numpy as np
import psutil

from stages.artifacts.files import StageError
from stages.artifacts.hdf5 import create_array, open_hdf5, read_strings, reading, write_strings


class FeatureWriter:
    """Writes a split's features batch by batch: memory does not grow with the images."""

    def __init__(self, file: h5py.File, split: str, ids: list[str], dtype: str) -> None:
        self.group = file.create_group(split)
        self.dtype = dtype
        self.written = 0
        self.count = len(ids)
        write_strings(self.group, "ids", ids)

    def append(self, layers: dict[str, np.ndarray]) -> None:
        """Add a batch {layer: (B, C, H, W)}.

        Raises
        ------
        StageError
            If a value is not finite in the stored dtype.
        """
        stop = self.written
        for name, array in layers.items():
            if name not in self.group:
                create_array(self.group, name, (self.count, *array.shape[1:]), self.dtype)
            stop = self.written + len(array)
            stored = array.astype(self.dtype)
            if not np.isfinite(stored).all():
                raise StageError(
                    f"layer {name}: features overflow {self.dtype}; use dtype: float32"
                )
            self.group[name][self.written : stop] = stored
        self.written = stop


class FeatureReader(AbstractContextManager["FeatureReader"]):
    """Reads one split as float32 arrays, from memory where it fits, else from the file.

    Parameters
    ----------
    layers
        Names of the layers to read, in the order of the returned arrays.
    memory_share
        Fraction of the free memory that the split may take to be loaded whole.
    """

    def __init__(
        self, path: Path, split: str, layers: list[str], memory_share: float = 0.25
    ) -> None:
        self.path = path
        self._context = ExitStack()
        with ExitStack() as stack, reading(path):
            group = stack.enter_context(open_hdf5(path))[split]
            self.ids = read_strings(group, "ids")
            missing = [layer for layer in layers if layer not in group] if self.ids else []
            if missing:
                held = ", ".join(name for name in group if name != "ids")
                raise StageError(f"{path}: no layer {', '.join(missing)}; it holds {held}")
            self._arrays = [group[layer] for layer in layers] if self.ids else []
            size = sum(array.nbytes for array in self._arrays)
            if size < memory_share * psutil.virtual_memory().available:
                self._arrays = [array[:] for array in self._arrays]
            self._context = stack.pop_all()  # nothing went wrong: stay open

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(C, H, W) of each layer."""
        return tuple(array.shape[1:] for array in self._arrays)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the images ``rows`` (B,), in that order, as float32 [(B, C, H, W)]."""
        order = np.argsort(rows)  # h5py wants increasing row numbers
        back = np.argsort(order)
        with reading(self.path):
            return [array[rows[order]][back].astype(np.float32) for array in self._arrays]

    def __exit__(self, *error: object) -> None:
        self._context.close()
