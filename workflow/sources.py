"""Digests of a category's source data, for each part of it that a job may read or not.

A part is what :data:`workflow.job.DATA_PARTS` names, wherever a kind of data set keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from params import models
from stages.artifacts.files import StageError
from stages.layouts.row import SATURATION_FILE
from stages.layouts.visa import read_entries
from workflow.fingerprint import HashCache, digest, folder_content, sha256_file


def source_digests(
    config: models.AnyDataset, folder: Path, cache: HashCache
) -> dict[str, str | None]:
    """Digest the data of a category's folder by part; None for what is not there."""
    if isinstance(config, models.Visa):
        return _listed(folder, config.split_csv, cache)
    places = ("train", "test", "ground_truth")
    parts = {part: folder_content(folder, part, cache) for part in places}
    if isinstance(config, models.Loco):
        parts["validation"] = folder_content(folder, "validation", cache)
        # What the values of masks mean is read with the masks, and by nobody else.
        (saturation,) = file_hashes([folder / SATURATION_FILE], cache)
        parts["ground_truth"] = digest([parts["ground_truth"], saturation])
    return parts


def file_hashes(files: Iterable[Path], cache: HashCache) -> list[str | None]:
    """SHA-256 of files, None for those that are not there."""
    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter
        return list(
            pool.map(
                lambda path: cache.get("sha256", path, sha256_file) if path.is_file() else None,
                files,
            )
        )


def _listed(folder: Path, split_csv: str, cache: HashCache) -> dict[str, str | None]:
    """Digest what the rows of a CSV say and the files that they name."""
    try:
        entries = read_entries(folder, split_csv)
    except StageError:  # the index stage says so; it is stale until the file is another
        (broken,) = file_hashes([folder.parent / split_csv], cache)
        return dict.fromkeys(("train", "test", "ground_truth"), broken)
    parts: dict[str, str | None] = {}
    for split in ("train", "test"):
        rows = [entry for entry in entries if entry.split == split]
        hashes = file_hashes([folder / row.image for row in rows], cache)
        said = [(row.image, row.label, found) for row, found in zip(rows, hashes, strict=True)]
        parts[split] = digest(said)
    masked = [entry for entry in entries if entry.mask]
    hashes = file_hashes([folder / row.mask for row in masked], cache)
    said = [(row.image, row.mask, found) for row, found in zip(masked, hashes, strict=True)]
    return {**parts, "ground_truth": digest(said)}
