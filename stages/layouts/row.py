"""What a layout finds: one row per image, and how large a part of a defect is all of it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

from stages.artifacts.files import IMAGE_SUFFIXES

SATURATION_FILE = "defects_config.json"  # MVTec's name for it


class Saturation(TypedDict):
    """How much of a defect, marked by one value in its mask, must be found to have found it."""

    value: int
    defect: str
    threshold: float  # share of the defect's area if relative, else pixels of the image
    relative: bool


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
    saturation: list[Saturation] = field(default_factory=list)
    width: int = 0
    height: int = 0
    mode: str = ""
    sha256: str = ""
    problem: str = ""
    remedy: str = ""

    def with_problem(self, problem: str, remedy: str) -> Row:
        """Return the row with a problem, unless it has one already."""
        return self if self.problem else replace(self, problem=problem, remedy=remedy)


class Layout(Protocol):
    """What a module of a layout offers."""

    def find_images(self, category: Path, parameters: Mapping[str, Any]) -> Iterator[Row]:
        """List the images of a category's folder with their masks, unopened.

        Raises
        ------
        StageError
            If a file that lists or describes them is missing or wrong.
        """

    def read_saturation(self, category: Path) -> dict[int, Saturation] | None:
        """Read the saturation of defects by the value in their masks; None: there is none.

        Raises
        ------
        StageError
            Naming file, entry and field, if it is not as described.
        """


def layout(name: str) -> Layout:
    """Return a layout's module. By name: a reader's code counts as its own data sets' only."""
    return cast(Layout, importlib.import_module(f"stages.layouts.{name}"))


def folders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted, without hidden ones; none if it is missing."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inside if path.is_dir() and not path.name.startswith(".")]


def image_files(folder: Path) -> list[Path]:
    """List the image files in a folder, sorted, without hidden ones; none if it is missing."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        path
        for path in inside
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]


def rows_below(category: Path, splits: Mapping[str, list[Path]]) -> Iterator[Row]:
    """List the images of folders named by defect type, by split; masks are still to be found."""
    for split, places in splits.items():
        for folder in places:
            for path in image_files(folder):
                yield Row(
                    image_id=f"{split}/{folder.name}/{path.stem}",
                    path=path.relative_to(category).as_posix(),
                    split=split,
                    defect_type=folder.name,
                    label=int(folder.name != "good"),
                )


def with_masks(row: Row, masks: list[str], place: str) -> Row:
    """Give a defective image its masks; without one it has a problem: add ``place``."""
    row = replace(row, masks=masks)
    return row if masks else row.with_problem("no mask", f"add {place}")
