"""The index of one category: a Parquet table with one row per image.

``image_id`` is ``<split>/<defect type>/<file stem>``; ``label`` 0 is good, 1 defective; ``masks``
and ``path`` are relative to the category's folder, ``sha256`` and ``mask_sha256`` those of the
files' bytes; ``saturation`` says for each mask how much of its defect is all of it
(:class:`stages.layouts.row.Saturation`), and is empty where the data set does not; ``problem`` is
empty for a usable image.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stages.artifacts.files import StageError, atomic_path

COLUMNS = {
    "image_id": "str",
    "path": "str",
    "split": "str",
    "defect_type": "str",
    "label": "int8",
    "masks": "object",
    "mask_sha256": "object",
    "saturation": "object",
    "width": "int32",
    "height": "int32",
    "mode": "str",
    "sha256": "str",
    "problem": "str",
    "remedy": "str",
}


def write_index(path: Path, table: pd.DataFrame) -> None:
    """Write the index atomically."""
    with atomic_path(path) as temporary:
        table[list(COLUMNS)].astype(COLUMNS).to_parquet(temporary, index=False)


def read_index(path: Path) -> pd.DataFrame:
    """Read the index with all its rows.

    Raises
    ------
    StageError
        If the file is missing or broken.
    """
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run snakemake to make it") from None
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: broken index ({error}); delete it and run again") from None
    for name in ("masks", "mask_sha256", "saturation"):
        table[name] = [list(values) for values in table[name]]
    return table


def usable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Select a split's images without problems, in the order that every stage uses.

    The order is that of the content hashes: fixed, and blind to labels, so that good and defective
    images come mixed.
    """
    rows = table[(table["split"] == split) & (table["problem"] == "")]
    return rows.sort_values(["sha256", "image_id"]).reset_index(drop=True)
