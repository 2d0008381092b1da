"""Single files of maps and masks; every error names the file."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from visionad_metrics.checks import real_array

SINGLE_PLANE = ("L", "I", "I;16", "I;16B", "F")  # Pillow's modes of one plane without a palette


class ReadingError(ValueError):
    """A file is missing, damaged, or does not hold what was asked of it."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what readers and checks raise into a :class:`ReadingError` that names the file."""
    if not path.exists():
        raise ReadingError(f"{path}: no such file or folder")
    try:
        yield
    except (
        OSError,
        ValueError,  # of NumPy, tifffile and the checks
        TypeError,
        LookupError,  # h5py's own
        RuntimeError,
        SyntaxError,  # Pillow's, for a broken PNG
        zipfile.BadZipFile,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        text = str(error)
        raise ReadingError(text if text.startswith(f"{path}:") else f"{path}: {text}") from error


def open_arrays(path: Path, only: str, files: ExitStack) -> Mapping[str, Any]:
    """Open ``.npy``, ``.npz`` or HDF5 as arrays by name; the one of ``.npy`` is called ``only``.

    To be called, and the arrays read, under :func:`naming`.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {only: np.load(path, mmap_mode="r", allow_pickle=False)}
    if suffix == ".npz":
        loaded: Mapping[str, Any] = files.enter_context(np.load(path, allow_pickle=False))
        return loaded
    if suffix in (".h5", ".hdf5"):
        try:
            import h5py
        except ImportError:
            raise ReadingError(
                "HDF5 files need h5py: pip install 'visionad-metrics[hdf5]'"
            ) from None
        opened: Mapping[str, Any] = files.enter_context(h5py.File(path, "r"))
        return opened
    raise ReadingError("neither a folder nor .npy, .npz, .h5 or .hdf5")


def choose_methods(
    arrays: Mapping[str, Any], method: str | None
) -> tuple[Any, Any | None, dict[str, str]]:
    """Return maps, scores if there are any, and in a results file which method each is of.

    A results file holds groups ``maps`` and ``scores`` of methods. ``method`` is taken from each
    group that has it, and the primary one from the other.
    """
    if "maps" not in arrays:
        raise ReadingError(f"no 'maps' in it; it holds {', '.join(arrays)}")
    file: Any = arrays
    maps = file["maps"]
    if hasattr(maps, "shape"):
        if method is not None:
            raise ReadingError(f"its maps are of no method, so {method!r} cannot be chosen")
        return maps, file.get("scores"), {}
    kinds = [kind for kind in ("maps", "scores") if kind in file]
    known = [name for kind in kinds for name in file[kind]]
    if method is not None and method not in known:
        raise ReadingError(f"no method {method!r}; it holds {', '.join(dict.fromkeys(known))}")
    methods = {}
    for kind in kinds:
        attribute = f"primary_{kind.removesuffix('s')}"
        if method is not None and method in file[kind]:
            methods[kind] = method
        elif attribute not in file.attrs:
            raise ReadingError(f"no attribute {attribute!r} says which method's {kind} to take")
        else:
            methods[kind] = str(file.attrs[attribute])
    chosen = {kind: file[kind][name] for kind, name in methods.items()}
    return chosen["maps"], chosen.get("scores"), methods


def read_map(path: Path) -> NDArray[Any]:
    """Read a map (H, W) in the dtype it is stored in; Pillow would round a 64-bit TIFF."""
    with naming(path):
        match path.suffix.lower():
            case ".npy":
                array = np.load(path, allow_pickle=False)
            case ".png":
                with Image.open(path) as image:
                    if image.mode not in SINGLE_PLANE:
                        raise ReadingError(f"a map has one plane of numbers, not {image.mode}")
                    array = np.asarray(image)
            case _:
                array = tifffile.imread(path)
        return real_array(array, "map", axes="H W")


def read_mask(path: Path) -> NDArray[np.bool]:
    """Read a mask image as (H, W) bool, at its own size."""
    with naming(path), Image.open(path) as image:
        # Alpha marks nothing, and a palette may number white 0.
        colours = image.mode in ("LA", "RGBA", "P", "PA")
        pixels = np.asarray(image.convert("RGB") if colours else image)
        return binarised(pixels if pixels.ndim == 2 else pixels.max(axis=2), "mask")


def image_size(path: Path) -> tuple[int, int]:
    """Read the size (H, W) of an image without its pixels."""
    with naming(path), Image.open(path) as image:
        return image.height, image.width


def binarised(mask: NDArray[Any], name: str) -> NDArray[np.bool]:
    """Return whether each value of a mask (H, W) is above 0; a negative one is an error."""
    if mask.dtype.kind == "b":
        return mask
    mask = real_array(mask, name, axes="H W")
    if (mask < 0).any():
        raise ReadingError(f"{name} must not be negative, got the value {mask.min()}")
    return mask > 0


def split_id(one: str, path: Path) -> tuple[str, str]:
    """Return defect type and name of an id ``[test/]<defect type>/<name>`` of ``path``."""
    parts = PurePosixPath(one).parts
    if len(parts) == 3 and parts[0] == "test":
        parts = parts[1:]
    if len(parts) != 2:
        raise ReadingError(f"{path}: {one!r} should be [test/]<defect type>/<name>")
    return parts[0], parts[1]


def read_ids(arrays: Any, count: int) -> list[str] | None:
    """Return ids (N,), which must be distinct; None if there are none."""
    if "ids" not in arrays:
        return None
    values = one_each(arrays["ids"][:], "ids", count)
    ids = [one.decode() if isinstance(one, bytes) else str(one) for one in values]
    if len(set(ids)) < count:
        raise ReadingError("ids must be distinct")
    return ids


def one_each(values: NDArray[Any], name: str, count: int) -> NDArray[Any]:
    """Return ``values`` if they are (N,)."""
    if values.shape != (count,):
        raise ReadingError(f"{name} must have shape ({count},), got {values.shape}")
    return values
