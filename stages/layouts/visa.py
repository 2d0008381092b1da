"""VisA's layout: `<root>/<category>/Data/...`, and a CSV that says what each image is.

`split_csv/1cls.csv` (header `object,split,label,image,mask`, paths relative to the root) is read as
it is; no reorganised copy of the data set is needed. Zou et al., ECCV 2022.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.artifacts.files import StageError
from stages.layouts.row import Row, Saturation

COLUMNS = ("object", "split", "label", "image", "mask")
TYPES = {"normal": "good", "anomaly": "anomaly"}  # as defect types are called here


class Entry(NamedTuple):
    """A row of the CSV; paths are relative to the category's folder."""

    split: str
    label: str
    image: str
    mask: str  # empty: none


def read_entries(category: Path, split_csv: str) -> list[Entry]:
    """Read the rows of a category from a CSV, given relative to the folder above the category's.

    Raises
    ------
    StageError
        Naming file, line and column, if the file is missing or a row is not as described.
    """
    path = category.parent / split_csv
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if missing := [name for name in COLUMNS if name not in header]:
                raise StageError(
                    f"{path}: no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}"
                )
            places = [header.index(name) for name in COLUMNS]
            lines = [
                (reader.line_num, [*row, *[""] * len(header)])  # short rows are filled up
                for row in reader
                if len(row) > places[0] and row[places[0]] == category.name
            ]
    except FileNotFoundError:
        raise StageError(
            f"{path}: no such file; it is in the repository amazon-science/spot-diff "
            "(the key split_csv of the data set says where it lies)"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise StageError(f"{path}: no CSV ({error}); take the data set's own file") from None
    if not lines:
        raise StageError(f"{path}: no row is of the object {category.name}")
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for number, row in lines:
        where = f"{path}: line {number}"
        entries.append(_entry([row[place].strip() for place in places], where))
        image = entries[-1].image
        if image in seen:
            raise StageError(f"{where}: image: {image} is that of line {seen[image]} already")
        seen[image] = number
    return entries


def _entry(cells: Sequence[str], where: str) -> Entry:
    category, split, label, image, mask = cells
    if split not in ("train", "test"):
        raise StageError(f"{where}: split: expected train or test, found {split!r}")
    if label not in TYPES:
        raise StageError(f"{where}: label: expected normal or anomaly, found {label!r}")
    if split == "train" and label != "normal":
        raise StageError(
            f"{where}: label: an anomaly to train on; the one-class split is split_csv/1cls.csv"
        )
    for name, value in (("image", image), ("mask", mask)):
        parts = value.split("/")
        if (value or name == "image") and (parts[0] != category or ".." in parts):
            raise StageError(f"{where}: {name}: expected a path below {category}/, found {value!r}")
    prefix = f"{category}/"
    return Entry(split, label, image.removeprefix(prefix), mask.removeprefix(prefix))


def find_images(category: Path, parameters: Mapping[str, Any]) -> Iterator[Row]:
    """List the images that the CSV names, there or not."""
    split_csv = parameters["split_csv"]
    for entry in read_entries(category, split_csv):
        kind = TYPES[entry.label]
        row = Row(
            image_id=f"{entry.split}/{kind}/{Path(entry.image).stem}",
            path=entry.image,
            split=entry.split,
            defect_type=kind,
            label=int(entry.label == "anomaly"),
            masks=[entry.mask] if entry.mask and entry.label == "anomaly" else [],
        )
        if row.label and not row.masks:
            row = row.with_problem("no mask", f"name one in {split_csv}")
        yield row


def read_saturation(category: Path) -> dict[int, Saturation] | None:
    """Say that there is none: values of masks number kinds of defects, and all above 0 are one."""
    return None
