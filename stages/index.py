"""Index one category: open every image and mask, and write down what is there and what is wrong.

Nothing is decided here: `stages.check` applies the policy to all categories of a data set at once.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from stages.artifacts.files import StageError
from stages.artifacts.images import COLOUR_MODES, IMAGE_SUFFIXES, load_mask, open_image
from stages.artifacts.index import write_index
from stages.artifacts.job import Job
from stages.command import Options, run


@dataclass(frozen=True)
class Row:
    """One image of the index; see :mod:`stages.artifacts.index`."""

    image_id: str
    path: str
    split: str
    defect_type: str
    label: int
    masks: list[str] = field(default_factory=list)
    mask_sha256: list[str] = field(default_factory=list)
    width: int = 0
    height: int = 0
    mode: str = ""
    sha256: str = ""
    problem: str = ""
    remedy: str = ""

    def with_problem(self, problem: str, remedy: str) -> Row:
        """Return the row with a problem, unless it has one already."""
        return self if self.problem else replace(self, problem=problem, remedy=remedy)


def _folders(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inside if path.is_dir() and not path.name.startswith(".")]


def find_images(category: Path) -> Iterator[Row]:
    """List the images of a category folder in MVTec's layout, unopened."""
    places = [("train", category / "train" / "good")]
    places += [("test", folder) for folder in _folders(category / "test")]
    for split, folder in places:
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            yield Row(
                image_id=f"{split}/{folder.name}/{path.stem}",
                path=path.relative_to(category).as_posix(),
                split=split,
                defect_type=folder.name,
                label=int(folder.name != "good"),
            )


def find_masks(category: Path, row: Row) -> list[str]:
    """Find a defective image's masks: ``ground_truth/<type>/<stem>[_mask].<suffix>``."""
    folder = category / "ground_truth" / row.defect_type
    stem = Path(row.path).stem
    candidates = [
        folder / (name + suffix) for name in (f"{stem}_mask", stem) for suffix in IMAGE_SUFFIXES
    ]
    return [path.relative_to(category).as_posix() for path in candidates if path.is_file()]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def inspect(category: Path, row: Row) -> Row:
    """Open an image and its mask, fill the row in, and note the first thing that is wrong."""
    path = category / row.path
    row = replace(row, sha256=_sha256(path))
    try:
        image = open_image(path)
    except StageError as error:
        return row.with_problem(f"cannot be decoded: {error}", "replace the file")
    row = replace(row, width=image.width, height=image.height, mode=image.mode)
    if image.mode not in COLOUR_MODES:
        row = row.with_problem(f"colour mode {image.mode}", "convert it to 8-bit grey or RGB")
    if min(image.size) < 16:
        row = row.with_problem(f"only {image.width} x {image.height} px", "remove the file")
    return _inspect_masks(category, row) if row.label else row


def _inspect_masks(category: Path, row: Row) -> Row:
    names = find_masks(category, row)
    row = replace(row, masks=names, mask_sha256=[_sha256(category / name) for name in names])
    place = f"ground_truth/{row.defect_type}/{Path(row.path).stem}_mask.png"
    if not row.masks:
        return row.with_problem("no mask", f"add {place}")
    for name in row.masks:
        try:
            mask = load_mask(category / name)
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
    return row


def mark_duplicates(rows: list[Row]) -> list[Row]:
    """Note test images whose bytes are also in training, and file stems used twice."""
    training = {row.sha256: row.path for row in rows if row.split == "train"}
    by_id: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_id[row.image_id].append(row.path)
    marked = []
    for row in rows:
        twin = training.get(row.sha256)
        if row.split == "test" and twin is not None:
            row = row.with_problem(f"the same image as {twin}", "remove it from one of the splits")
        if len(by_id[row.image_id]) > 1:
            row = row.with_problem(
                f"same name as {' and '.join(by_id[row.image_id])}", "rename one"
            )
        marked.append(row)
    return marked


def build_index(category: Path) -> pd.DataFrame:
    """Index a category folder.

    Raises
    ------
    StageError
        If the folder is missing.
    """
    if not category.is_dir():
        raise StageError(
            f"{category}: no such folder; put the data there or set its root, e.g. "
            f"--config roots='{{{category.parent.name}: /path/to/data}}'"
        )
    rows = mark_duplicates([inspect(category, row) for row in find_images(category)])
    return pd.DataFrame([vars(row) for row in rows], columns=list(Row.__dataclass_fields__))


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the index of the job's category."""
    category = Path(job.parameters["root"]) / job.key["category"]
    table = build_index(category)
    write_index(job.outputs["index"], table)
    return {"images": len(table), "problems": int((table["problem"] != "").sum())}


if __name__ == "__main__":
    run("index", __doc__, body)
