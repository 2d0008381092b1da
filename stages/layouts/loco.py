"""MVTec LOCO AD's layout: several masks an image, and how much of each defect is all of it.

`<category>/{train,validation}/good`, `test/{good,logical_anomalies,structural_anomalies}`,
`ground_truth/<type>/<stem>/*.png` (a mask per defect: 0, and one value for what it is) and
`defects_config.json` (what a value means). Bergmann et al., IJCV 2022.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.files import StageError
from stages.layouts.row import (
    SATURATION_FILE,
    Row,
    Saturation,
    folders,
    image_files,
    rows_below,
    with_masks,
)

FIELDS = ("defect_name", "pixel_value", "relative_saturation", "saturation_threshold")


def find_images(category: Path, parameters: Mapping[str, Any]) -> Iterator[Row]:
    """List the images with their masks."""
    splits = {
        "train": [category / "train" / "good"],
        "validation": [category / "validation" / "good"],
        "test": folders(category / "test"),
    }
    for row in rows_below(category, splits):
        if row.label:
            place = f"ground_truth/{row.defect_type}/{Path(row.path).stem}"
            masks = [f"{place}/{path.name}" for path in image_files(category / place)]
            yield with_masks(row, masks, f"{place}/000.png")
        else:
            yield row


def read_saturation(category: Path) -> dict[int, Saturation]:
    """Read `defects_config.json`: saturation by the value that marks a defect.

    Not by the package of metrics, which can read it too: all of its code would count as the
    index's, and a change of a metric would train everything anew.
    """
    path = category / SATURATION_FILE
    if not path.is_file():
        raise StageError(f"{path}: no such file; it comes with MVTec LOCO AD")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{path}: not JSON ({error}); take the data set's own file") from None
    if not isinstance(entries, list):
        raise StageError(f"{path}: expected a list of defects, found {type(entries).__name__}")
    found: dict[int, Saturation] = {}
    for number, entry in enumerate(entries):
        one = _saturation(entry, f"{path}: entry {number}")
        if one["value"] in found:
            other = found[one["value"]]["defect"]
            raise StageError(
                f"{path}: entry {number}: pixel_value {one['value']} is that of {other!r} already"
            )
        found[one["value"]] = one
    return found


def _saturation(entry: Any, where: str) -> Saturation:
    if not isinstance(entry, dict):
        raise StageError(f"{where}: expected an object, found {entry!r}")
    if missing := [name for name in FIELDS if name not in entry]:
        raise StageError(f"{where}: {', '.join(missing)}: missing")
    name, value, relative, threshold = (entry[field] for field in FIELDS)
    # Types are compared, not asked by isinstance: true is an int too, and 1 is not the share 1.0.
    if type(name) is not str or not name:
        problem = f"defect_name: expected a name, found {name!r}"
    elif type(value) is not int or not 1 <= value <= 255:
        problem = f"pixel_value: expected an integer from 1 to 255, found {value!r}"
    elif type(relative) is not bool:
        problem = f"relative_saturation: expected true or false, found {relative!r}"
    elif relative and not (type(threshold) is float and 0 < threshold <= 1):
        problem = (
            f"saturation_threshold: relative, so expected a float above 0, at most 1.0, "
            f"found {threshold!r}"
        )
    elif not relative and not (type(threshold) is int and threshold > 0):
        problem = (
            "saturation_threshold: not relative, so expected a positive integer of pixels, "
            f"found {threshold!r}"
        )
    else:
        return {
            "value": value,
            "defect": name,
            "threshold": float(threshold),
            "relative": relative,
        }
    raise StageError(f"{where}: {problem}")
