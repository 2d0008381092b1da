"""A sweep's grid: what its file may say, its points, and what they are called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from params import models
from params.reading import ParamsError, merge, read_yaml, validate
from workflow.fingerprint import digest

LONGEST = 100  # of a name: params.models.Name

Values = dict[str, Any]  # dotted path -> value


class Grid(models.Strict):
    """What a sweep's file says."""

    extends: models.Name
    set: dict[str, Any] = Field({}, description="dotted path -> value of all")
    grid: dict[str, list[Any]] = Field({}, description="dotted path -> values; all combinations")
    zip: dict[str, list[Any]] = Field({}, description="dotted path -> values; side by side")


def read_grid(path: Path) -> Grid:
    """Read a sweep's file.

    Raises
    ------
    ParamsError
        Naming the key and what is expected.
    """
    grid = validate(Grid, read_yaml(path), path)
    varied = {"grid": grid.grid, "zip": grid.zip}
    if not grid.grid and not grid.zip:
        raise ParamsError(f"{path}: give grid, zip, or both")
    for part, lists in varied.items():
        for key, values in lists.items():
            if not values:
                raise ParamsError(f"{path}: {part}.{key}: an empty list leaves nothing to run")
            if doubled := [v for n, v in enumerate(values) if v in values[:n]]:
                raise ParamsError(f"{path}: {part}.{key}: {doubled[0]!r} stands twice")
    lengths = {key: len(values) for key, values in grid.zip.items()}
    if len(set(lengths.values())) > 1:
        raise ParamsError(f"{path}: zip: lists must have one length, given: {lengths}")
    named = [*grid.set, *grid.grid, *grid.zip]
    for one, other in itertools.permutations(named, 2):
        if one == other or f"{other}.".startswith(f"{one}."):
            raise ParamsError(f"{path}: {other}: is given twice, also by {one}")
    return grid


def combinations(grid: Grid) -> Iterator[Values]:
    """List what differs: the columns of ``zip``, each with every combination of ``grid``."""
    rows = [dict(zip(grid.zip, row, strict=True)) for row in zip(*grid.zip.values(), strict=True)]
    for row in rows or [{}]:
        for chosen in itertools.product(*grid.grid.values()):
            yield {**row, **dict(zip(grid.grid, chosen, strict=True))}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo dots: ``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        *folders, last = path.split(".")
        one: dict[str, Any] = {last: value}
        for folder in reversed(folders):
            one = {folder: one}
        found = merge(found, one)
    return found


def word(value: Any) -> str:
    """Write a value so that it can be part of a name."""
    text = "null" if value is None else str(value)
    if isinstance(value, list):
        text = "_".join(map(word, value))
    return re.sub(r"[^A-Za-z0-9_.\-]+", "_", text).strip("_") or digest(value)[:6]


def names(base: str, points: Sequence[Values]) -> list[str]:
    """Name points by what differs: ``patchcore-coreset_ratio-0.05``; unique, not too long."""
    found: list[str] = []
    for values in points:
        parts = [f"{path.rpartition('.')[2]}-{word(value)}" for path, value in values.items()]
        name = "-".join([base, *parts])
        if len(name) > LONGEST or name in found:
            name = f"{name[: LONGEST - 9]}-{digest(values)[:8]}"
        found.append(name)
    return found
