"""Anomaly maps from a file or a folder. They stay on disk and are read one at a time."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionad_metrics.checks import array_like, binary_array, real_array
from visionad_metrics.reading.files import (
    ReadingError,
    choose_methods,
    naming,
    one_each,
    open_arrays,
    read_ids,
    read_map,
    split_id,
)

Size = tuple[int, int]

FORMATS = {".tif": "TIFF", ".tiff": "TIFF", ".png": "PNG", ".npy": "NumPy"}


@dataclass(frozen=True)
class StoredMaps:
    """N anomaly maps as they lie on disk, those of a folder each with a size of its own.

    Attributes
    ----------
    path : the file or folder
    count : N
    read : reads map i, (H, W) finite real numbers
    ids : (N,) str, such as ``test/scratch/000``, or None if the file has none
    scores, labels : (N,) real numbers and bool, or None if the file has none
    methods : in a results file, which method the maps and scores are of
    """

    path: Path
    count: int
    read: Callable[[int], NDArray[Any]]
    ids: list[str] | None = None
    scores: NDArray[Any] | None = None
    labels: NDArray[np.bool] | None = None
    methods: dict[str, str] = field(default_factory=dict)

    def maxima(self) -> NDArray[Any]:
        """Return the maximum of each map at its own size, (N,)."""
        return np.array([self.read(row).max() for row in range(self.count)])


class ResizedMaps:
    """Maps (N, H, W) at one size, read on slicing; ``Samples`` takes it for an array on disk."""

    def __init__(self, stored: StoredMaps, size: Size) -> None:
        self._stored = stored
        self.shape = (stored.count, *size)
        self.dtype = resized_map(stored.read(0), size).dtype

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        size = self.shape[1:]
        read = self._stored.read
        return np.stack([resized_map(read(row), size) for row in range(*rows.indices(len(self)))])

    def __len__(self) -> int:
        return self.shape[0]


def resized_map(one: NDArray[Any], size: Size) -> NDArray[Any]:
    """Bring a map to ``size``: bilinear, antialiased, in float32; untouched if it has that size."""
    if one.shape == size:
        return one
    image = Image.fromarray(np.asarray(one, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def read_maps(path: Path, method: str | None, files: ExitStack) -> StoredMaps:
    """Open the maps of a file or folder; an HDF5 file stays open as long as ``files``.

    Raises
    ------
    ReadingError
        If there are none, they are no (N, H, W) real numbers, or the method is missing.
    """
    if path.is_dir():
        if method is not None:
            raise ReadingError(f"{path}: a folder has no methods to choose {method!r} from")
        return _maps_of_folder(path)
    with naming(path):
        arrays = open_arrays(path, "maps", files)
        stored, scores, methods = choose_methods(arrays, method)
        stored = array_like(stored, "maps", axes="N H W")
        if 0 in stored.shape:
            raise ReadingError(f"maps of shape {stored.shape} hold nothing")
        count = stored.shape[0]
        ids = read_ids(arrays, count)
        labels = arrays.get("labels")
        if scores is not None:
            scores = one_each(real_array(scores[:], "scores", axes="N"), "scores", count)
        if labels is not None:
            labels = one_each(binary_array(labels[:], "labels", axes="N"), "labels", count)

    def read(row: int) -> NDArray[Any]:
        with naming(path):
            return real_array(stored[row], f"map {ids[row] if ids else row}", axes="H W")

    return StoredMaps(path, count, read, ids, scores, labels, methods)


def _maps_of_folder(folder: Path) -> StoredMaps:
    paths: dict[str, Path] = {}
    formats = set()
    found = [
        Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names
    ]
    for path in sorted(found):
        name = path.relative_to(folder)
        if path.suffix.lower() not in FORMATS or name.name.startswith("."):
            continue
        one = name.with_suffix("").as_posix()
        split_id(one, path)
        if one in paths:
            raise ReadingError(f"{path}: two maps of one image; the other is {paths[one]}")
        paths[one] = path
        formats.add(FORMATS[path.suffix.lower()])
    if not paths:
        raise ReadingError(f"{folder}: no map there ({', '.join(FORMATS)})")
    if len(formats) > 1:  # an 8-bit and a float map cannot be compared
        raise ReadingError(f"{folder}: maps of several formats: {', '.join(sorted(formats))}")
    in_order = list(paths.values())
    return StoredMaps(folder, len(paths), lambda row: read_map(in_order[row]), list(paths))
