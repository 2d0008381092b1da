"""Defects with saturation thresholds, as MVTec LOCO AD describes them.

A missing object may have stood anywhere in a large area: who finds enough of it has found it. So
a defect counts as whole once its saturation area is found.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionad_metrics.checks import array_like


@dataclass(frozen=True)
class Saturation:
    """One entry of a ``defects_config.json``.

    Attributes
    ----------
    threshold : share of the defect's area in (0, 1] if ``relative``, else pixels of the mask
    relative : which of the two
    name : the defect's name
    """

    threshold: float
    relative: bool
    name: str = ""

    def area(self, defect: int, scale: float = 1.0) -> float:
        """Return the saturation area in pixels, at most that of the defect, at least one pixel.

        Parameters
        ----------
        defect : area of the defect in pixels of the mask at hand
        scale : area of the mask at hand over that of the original, for resized masks
        """
        if self.relative:
            return max(1, int(self.threshold * defect))
        return min(float(defect), max(1.0, self.threshold * scale))


@dataclass(frozen=True, eq=False)
class Channel:
    """One defect of one image.

    Attributes
    ----------
    image : number of the image
    places : (D,) int64, its pixels in the flattened image, ascending
    saturation : pixels that count as all of it, above 0
    """

    image: int
    places: NDArray[np.int64]
    saturation: float


def read_defects_config(path: Path | str) -> dict[int, Saturation]:
    """Read a ``defects_config.json``: saturation by the pixel value that marks a defect.

    Raises
    ------
    ValueError
        If an entry is not as MVTec LOCO AD describes; the message names file, entry and field.
    """
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of defects, got {type(entries).__name__}")
    found: dict[int, Saturation] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        value, saturation = _entry(entry, where)
        if value in found:
            raise ValueError(f"{where}: pixel_value {value} is taken by {found[value].name!r}")
        found[value] = saturation
    return found


def _entry(entry: Any, where: str) -> tuple[int, Saturation]:
    fields = ("defect_name", "pixel_value", "relative_saturation", "saturation_threshold")
    if not isinstance(entry, dict) or set(fields) - set(entry):
        raise ValueError(f"{where}: expected an object with {', '.join(fields)}, got {entry!r}")
    name, value, relative, threshold = (entry[field] for field in fields)
    if type(value) is not int or not 1 <= value <= 255:
        raise ValueError(f"{where}: pixel_value must be an integer from 1 to 255, got {value!r}")
    if type(relative) is not bool:
        raise ValueError(f"{where}: relative_saturation must be true or false, got {relative!r}")
    if relative and not (type(threshold) is float and 0 < threshold <= 1):
        expected = "a float above 0, at most 1.0"
    elif not relative and not (type(threshold) is int and threshold > 0):
        expected = "a positive integer of pixels"
    else:
        return value, Saturation(threshold, relative, str(name))
    raise ValueError(f"{where}: saturation_threshold must be {expected}, got {threshold!r}")


def make_channels(
    masks: Sequence[Sequence[Any]], config: Mapping[int, Saturation], scale: float = 1.0
) -> list[Channel]:
    """Look up the saturation areas of all defects of all images.

    Parameters
    ----------
    masks : for each of N images its defects, (H, W) integers each: 0, and one value of ``config``
    config : saturation by pixel value
    scale : area of these masks over that of the original ones

    Raises
    ------
    ValueError
        If a mask holds no defect, several values, or a value that ``config`` lacks.
    """
    channels = []
    for image, defects in enumerate(masks):
        for number, values in enumerate(defects):
            name = f"masks[{image}][{number}]"
            flat = np.asarray(array_like(values, name, axes="H W")).reshape(-1)
            places = np.flatnonzero(flat)
            if not places.size:
                raise ValueError(f"{name} holds no defect: all of its pixels are 0")
            found = np.unique(flat[places])
            if found.size > 1 or int(found[0]) not in config:
                raise ValueError(
                    f"{name} must hold 0 and one pixel value of the configuration, "
                    f"got {', '.join(map(str, found[:5]))}"
                )
            area = config[int(found[0])].area(places.size, scale)
            channels.append(Channel(image, places, area))
    return channels
