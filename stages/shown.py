"""Which test images pictures show: decided by the index alone, so the same for all algorithms."""

from __future__ import annotations

import itertools

import pandas as pd


def in_turn(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """List ids of a test split's good images, and of the others: defect types in turn, by name."""
    good = sorted(table.loc[table["label"] == 0, "image_id"])
    defects = table[table["label"] == 1].groupby("defect_type")["image_id"]
    turns = itertools.zip_longest(*(sorted(ids) for _, ids in defects))
    return good, [image_id for turn in turns for image_id in turn if image_id is not None]
