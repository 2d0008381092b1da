"""MVTec AD's layout: `<category>/{train/good,test/<type>,ground_truth/<type>/<stem>_mask.png}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.files import IMAGE_SUFFIXES
from stages.layouts.row import Row, Saturation, folders, rows_below, with_masks


def find_images(category: Path, parameters: Mapping[str, Any]) -> Iterator[Row]:
    """List the images with their masks; folders beside those of MVTec AD are not looked at."""
    splits = {"train": [category / "train" / "good"], "test": folders(category / "test")}
    for row in rows_below(category, splits):
        if row.label:
            stem = f"ground_truth/{row.defect_type}/{Path(row.path).stem}"
            yield with_masks(row, _masks(category, stem), f"{stem}_mask.png")
        else:
            yield row


def _masks(category: Path, stem: str) -> list[str]:
    """Find an image's masks: ``<stem>[_mask].<suffix>``."""
    names = [name + suffix for name in (f"{stem}_mask", stem) for suffix in IMAGE_SUFFIXES]
    return [name for name in names if (category / name).is_file()]


def read_saturation(category: Path) -> dict[int, Saturation] | None:
    """Say that there is none: a defect of MVTec AD is what its mask shows."""
    return None
