"""Index one category: open every image and mask, and write down what is there and what is wrong.

Nothing is decided here: `stages.check` applies the policy to all categories of a data set at once.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.artifacts.files import StageError
from stages.artifacts.images import COLOUR_MODES, load_mask_values, open_image
from stages.artifacts.index import write_index
from stages.artifacts.job import Job
from stages.command import Options, run
from stages.layouts.row import SATURATION_FILE, Row, Saturation, layout

SPLITS = ("train", "validation", "test")  # an image may be in one of them only
MVTEC: Mapping[str, Any] = {"layout": "mvtec"}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def inspect(category: Path, row: Row, saturation: Mapping[int, Saturation] | None) -> Row:
    """Open an image and its masks, fill the row in, and note the first thing that is wrong."""
    path = category / row.path
    masks = [_sha256(category / name) for name in row.masks]
    row = replace(row, sha256=_sha256(path), mask_sha256=masks)
    if not row.sha256:
        return row.with_problem("no such file", "add it, or take it off the list of images")
    try:
        image = open_image(path)
    except StageError as error:
        return row.with_problem(f"cannot be decoded: {error}", "replace the file")
    row = replace(row, width=image.width, height=image.height, mode=image.mode)
    if image.mode not in COLOUR_MODES:
        row = row.with_problem(f"colour mode {image.mode}", "convert it to 8-bit grey or RGB")
    if min(image.size) < 16:
        row = row.with_problem(f"only {image.width} x {image.height} px", "remove the file")
    return _inspect_masks(category, row, saturation) if row.masks else row


def _inspect_masks(category: Path, row: Row, saturation: Mapping[int, Saturation] | None) -> Row:
    found: list[Saturation] = []
    for name, there in zip(row.masks, row.mask_sha256, strict=True):
        if not there:
            return row.with_problem(f"mask {name}: no such file", "add it")
        try:
            mask = load_mask_values(category / name)
        except StageError as error:
            return row.with_problem(f"mask cannot be decoded: {error}", f"replace {name}")
        height, width = mask.shape
        if (width, height) != (row.width, row.height):
            row = row.with_problem(
                f"mask {name} is {width} x {height} px, the image {row.width} x {row.height}",
                "make both the same size",
            )
        elif not mask.any():
            row = row.with_problem(
                f"mask {name} is empty", f"mark the defect, or move the image to {row.split}/good"
            )
        elif saturation is not None:
            values = [int(value) for value in np.unique(mask[mask > 0])]
            if len(values) > 1:
                row = row.with_problem(
                    f"mask {name} holds several values ({', '.join(map(str, values[:5]))})",
                    "give each defect a mask of its own",
                )
            elif values[0] not in saturation:
                row = row.with_problem(
                    f"mask {name} holds the value {values[0]}, which {SATURATION_FILE} lacks",
                    f"correct the mask, or add a defect of pixel_value {values[0]}",
                )
            else:
                found.append(saturation[values[0]])
    return replace(row, saturation=found)


def mark_duplicates(rows: list[Row]) -> list[Row]:
    """Note images whose bytes are also in an earlier split, and file stems used twice."""
    paths = {
        split: {row.sha256: row.path for row in rows if row.split == split and row.sha256}
        for split in SPLITS
    }
    by_id: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_id[row.image_id].append(row.path)
    marked = []
    for row in rows:
        for split in SPLITS[: SPLITS.index(row.split)]:
            if row.sha256 in paths[split]:
                row = row.with_problem(
                    f"the same image as {paths[split][row.sha256]}",
                    "remove it from one of the splits",
                )
        if len(by_id[row.image_id]) > 1:
            row = row.with_problem(
                f"same name as {' and '.join(by_id[row.image_id])}", "rename one"
            )
        marked.append(row)
    return marked


def build_index(category: Path, parameters: Mapping[str, Any] = MVTEC) -> pd.DataFrame:
    """Index a category folder, laid out as the parameter ``layout`` says.

    Raises
    ------
    StageError
        If the folder is missing, or a file that describes its images is wrong.
    """
    if not category.is_dir():
        raise StageError(
            f"{category}: no such folder; put the data there or set its root, e.g. "
            f"--config roots='{{{category.parent.name}: /path/to/data}}'"
        )
    reader = layout(parameters["layout"])
    saturation = reader.read_saturation(category)
    found = reader.find_images(category, parameters)
    rows = mark_duplicates([inspect(category, row, saturation) for row in found])
    return pd.DataFrame([vars(row) for row in rows], columns=list(Row.__dataclass_fields__))


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the index of the job's category."""
    category = Path(job.parameters["root"]) / job.key["category"]
    table = build_index(category, job.parameters)
    write_index(job.outputs["index"], table)
    return {"images": len(table), "problems": int((table["problem"] != "").sum())}


if __name__ == "__main__":
    run("index", __doc__, body)
