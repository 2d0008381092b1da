"""Read published values: tables beside a `sources.yaml` that says where each value comes from.

A table's columns are ``COLUMNS``: `source` (a key of `sources.yaml`), `dataset` (our name of the
images), `metric`, `algorithm` (our nearest configuration), `category` (`mean`: over the data set)
and `value` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import ValidationError

from params.sources import SOURCES, Source
from stages.artifacts.files import StageError

COLUMNS = ["source", "dataset", "metric", "algorithm", "category", "value"]
KEYS = COLUMNS[:-1]
MEAN = "mean"  # as a category: the mean over the data set


def read_sources(path: Path) -> dict[str, Source]:
    """Read `sources.yaml`: the sources by name.

    Raises
    ------
    StageError
        If it is no such file, or a source lacks a field, has another, or one of another type.
    """
    try:
        return SOURCES.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "whole file"
        raise StageError(f"{path}: {place}: {first['msg']}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StageError(f"{path}: cannot be read ({error})") from None


def read_values(path: Path, sources: Mapping[str, Source] | None = None) -> pd.DataFrame:
    """Read one table of published values.

    Parameters
    ----------
    path
        The CSV file.
    sources
        The sources that may be named; by default those of `sources.yaml` beside it.

    Returns
    -------
    pandas.DataFrame
        The columns ``COLUMNS``; text, and `value` as float64.

    Raises
    ------
    StageError
        If a column is missing or another is there, a cell is empty, a value is no number in [0, 1],
        a source is unknown, or a source gives two values for one thing.
    """
    known = read_sources(path.with_name("sources.yaml")) if sources is None else sources
    types: dict[Any, Any] = {**dict.fromkeys(KEYS, "str"), "value": "float64"}
    try:
        # Whatever a category is called, it is text: NA and 01 too.
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: cannot be read ({error})") from None
    if list(table.columns) != COLUMNS:
        raise StageError(f"{path}: expected the columns {', '.join(COLUMNS)}")

    def refuse(rows: pd.Series, what: str) -> None:
        if rows.any():
            place = int(rows.to_numpy().argmax())
            text = ", ".join(map(str, table.iloc[place]))
            raise StageError(f"{path}: line {place + 2}: {what}: {text}")

    refuse(table.isna().any(axis=1), "an empty cell")
    refuse(~table["value"].between(0, 1), "the value is not in [0, 1]")
    refuse(~table["source"].isin(list(known)), "a source that sources.yaml does not name")
    refuse(table.duplicated(KEYS), "a second value for the same thing")
    return table


def measured_on(values: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Select the values of a data set; `mvtec_ad_320` has the images of `mvtec_ad`."""
    same = values["dataset"].map(lambda name: f"{dataset}_".startswith(f"{name}_"))
    return values[same.astype(bool)]


def read_published(paths: Iterable[Path]) -> tuple[pd.DataFrame, dict[str, Source]]:
    """Read several tables and the `sources.yaml` beside each: all values, and their sources.

    Raises
    ------
    StageError
        As :func:`read_values` does, or if two folders name one source differently.
    """
    tables = [pd.DataFrame(columns=COLUMNS).astype({"value": "float64"})]
    sources: dict[str, Source] = {}
    for path in paths:
        found = read_sources(path.with_name("sources.yaml"))
        for name, source in found.items():
            if sources.setdefault(name, source) != source:
                raise StageError(f"{path}: source {name} is another one than in another folder")
        tables.append(read_values(path, found))
    values = pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)
    return values, {name: sources[name] for name in sources if name in set(values["source"])}
