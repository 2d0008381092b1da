"""Masks from a file or a folder, held as bool at the one size that all are evaluated at."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionad_metrics.checks import array_like
from visionad_metrics.reading.files import (
    ReadingError,
    binarised,
    image_size,
    naming,
    open_arrays,
    read_ids,
    read_mask,
    split_id,
)
from visionad_metrics.reading.maps import Size, StoredMaps

Mask = NDArray[np.bool]

SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # no JPEG: its noise is above 0
GOOD = ("good", "ok", "Normal")  # of MVTec's data sets, BTAD and VisA


def read_masks(
    path: Path, maps: StoredMaps, size: Size | None, files: ExitStack
) -> tuple[Mask, Mask]:
    """Read the masks of the maps' images.

    Parameters
    ----------
    path : an array file, or a folder of mask images (those of ``GOOD`` need none)
    maps : whose ids say which masks are wanted
    size : what to bring masks to after they are binarised at > 0; None if they have one size

    Returns
    -------
    masks : (N, H, W) bool
    defective : (N,) bool, whether the mask had an anomalous pixel before it was resized

    Raises
    ------
    ReadingError
        If a defective image has no mask, sizes differ, or counts or ids are not the maps'.
    """
    read = _masks_of_folder if path.is_dir() else _masks_of_file
    return read(path, maps, size, files)


def resized_mask(mask: Mask, size: Size) -> Mask:
    """Bring a mask to ``size`` by nearest neighbour."""
    if mask.shape == size:
        return mask
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST)) > 0


def _masks_of_file(
    path: Path, maps: StoredMaps, size: Size | None, files: ExitStack
) -> tuple[Mask, Mask]:
    with naming(path):
        arrays = open_arrays(path, "masks", files)
        if "masks" not in arrays:
            raise ReadingError(f"no 'masks' in it; it holds {', '.join(arrays)}")
        stored = array_like(arrays["masks"], "masks", axes="N H W")
        if stored.shape[0] != maps.count:
            raise ReadingError(f"{stored.shape[0]} masks, but {maps.count} maps in {maps.path}")
        rows = _rows(read_ids(arrays, maps.count), maps)
        masks = np.zeros((maps.count, *(size or stored.shape[1:])), np.bool)
        defective = np.zeros(maps.count, np.bool)
        for row, place in enumerate(rows):
            mask = binarised(stored[place], f"mask {place}")
            defective[row] = mask.any()
            masks[row] = resized_mask(mask, masks.shape[1:])
    return masks, defective


def _masks_of_folder(
    folder: Path, maps: StoredMaps, size: Size | None, files: ExitStack
) -> tuple[Mask, Mask]:
    if maps.ids is None:
        raise ReadingError(
            f"{maps.path}: without ids its maps cannot be matched with the masks of {folder}; "
            "give masks as an array (N, H, W), or maps as .npz with ids"
        )
    found = [find_masks(folder, one) for one in maps.ids]
    size = size or _common_size(found) or maps.read(0).shape
    masks = np.zeros((maps.count, *size), np.bool)
    defective = np.zeros(maps.count, np.bool)
    for row, paths in enumerate(found):
        for path in paths:
            mask = read_mask(path)
            defective[row] |= mask.any()
            masks[row] |= resized_mask(mask, size)
        if paths and not defective[row]:
            raise ReadingError(f"{paths[0]}: no anomalous pixel in the mask of a defective image")
    return masks, defective


def find_masks(folder: Path, one: str) -> list[Path]:
    """Find the mask files of the image ``[test/]<defect type>/<name>``; none if it is good.

    ``<name>_mask.png`` and ``<name>.png`` are looked for, then a folder ``<name>`` of several
    masks to be united, as in MVTec LOCO AD.

    Raises
    ------
    ReadingError
        If a defective image has none.
    """
    defect_type, name = split_id(one, folder)
    if defect_type in GOOD:
        return []
    place = folder / defect_type
    for stem in (f"{name}_mask", name):
        for suffix in SUFFIXES:
            if (place / (stem + suffix)).is_file():
                return [place / (stem + suffix)]
    found = sorted((place / name).glob("*.png"))
    if not found:
        raise ReadingError(
            f"no mask of {one}: looked for {place / name}_mask.png, {place / name}.png "
            f"(or {', '.join(SUFFIXES[1:])}) and {place / name}/*.png"
        )
    return found


def _common_size(found: list[list[Path]]) -> Size | None:
    """Return the size of all masks; None if there is no mask."""
    sizes = {image_size(path): path for paths in found for path in paths}
    if len(sizes) > 1:
        examples = ", ".join(f"{h} x {w} in {path}" for (h, w), path in list(sizes.items())[:2])
        raise ReadingError(f"masks have several sizes ({examples}); give one, as --size 256")
    return next(iter(sizes), None)


def _rows(ids: list[str] | None, maps: StoredMaps) -> list[int]:
    """Return the place of each map's mask: by id where both files have ids, else in order."""
    if ids is None or maps.ids is None:
        return list(range(maps.count))
    places = {one: place for place, one in enumerate(ids)}
    odd = set(places) ^ set(maps.ids)
    if odd:
        raise ReadingError(f"its ids are not those of {maps.path}, e.g. {min(odd)}")
    return [places[one] for one in maps.ids]
