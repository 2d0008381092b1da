"""What came out of one (algorithm, category, seed), in memory and in pictures, for notebooks.

Read from the artefacts that stages have written; nothing is computed anew.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.artifacts.files import read_json
from stages.artifacts.images import load_image
from stages.artifacts.index import read_index, usable
from stages.artifacts.maps import read_info, read_maps, read_scores
from stages.drawing import COLOURS, STYLE
from stages.evaluate import ALL, Truth, read_truth
from stages.sheet import Block, choose

TILE, DPI = 96, 96  # pixels


@dataclass(frozen=True)
class Category:
    """The images of a category, as its index lists them, and the run that they are read for.

    Attributes
    ----------
    name
        Data set and category, ``demo/weave``.
    repository, overrides
        Where the run is planned, and what is laid over ``params/benchmark.yaml``.
    folder
        Paths of images and masks are relative to it.
    table
        The index, with usable images only.
    size, crop, interpolation
        What maps and masks are compared at (the protocol).
    colour_map
        Of anomaly maps.
    """

    name: str
    repository: Path
    overrides: Mapping[str, Any]
    folder: Path
    table: pd.DataFrame = field(repr=False)
    size: int
    crop: float
    interpolation: str
    colour_map: str

    def images(self, ids: Sequence[str]) -> list[np.ndarray]:
        """Read images (size, size, 3) uint8 by id."""
        return [
            load_image(self.folder / path, self.size, self.crop, self.interpolation)
            for path in self.table.loc[list(ids), "path"]
        ]

    def truth(self, ids: Sequence[str]) -> Truth:
        """Read labels, defect types and masks by id."""
        return read_truth(self.folder, self.table.loc[list(ids)], self.size, self.crop)

    def counts(self) -> pd.DataFrame:
        """Count the images of each split and defect type."""
        counted = self.table.groupby(["split", "defect_type"], sort=False).size()
        return counted.rename("images").reset_index()


@dataclass(frozen=True)
class Result:
    """What an algorithm says of the test images, and what that is worth.

    Attributes
    ----------
    maps, scores
        Of the primary methods: (N, H, W) float32 and (N,) float64.
    ids
        Of the images, in the same order.
    metrics
        By name, over all defect types; nan where undefined, for which ``reasons`` say why.
    curves
        By metric: the points that its file holds, two or more lists by name.
    """

    algorithm: str
    category: Category = field(repr=False)
    ids: list[str] = field(repr=False)
    maps: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)
    metrics: dict[str, float]
    reasons: dict[str, str]
    curves: dict[str, dict[str, list[float]]] = field(repr=False)


@dataclass(frozen=True)
class Picture:
    """An encoded picture that notebooks show; ``alt`` says what is on it."""

    data: bytes = field(repr=False)
    kind: str  # png or jpeg
    alt: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        kind, data = f"image/{self.kind}", base64.b64encode(self.data).decode("ascii")
        return {kind: data, "text/plain": self.alt}, {kind: {"alt": self.alt}}


def open_category(path: Path, **fields: Any) -> Category:
    """Read the index at ``path``; the other fields of :class:`Category` are given."""
    index = read_index(path)
    table = pd.concat([usable(index, split) for split in ("train", "validation", "test")])
    return Category(table=table.set_index("image_id", drop=False), **fields)


def read_result(
    algorithm: str, category: Category, maps: Path, metrics: Mapping[str, Path]
) -> Result:
    """Read a file of maps, and by name the files of metrics."""
    info = read_info(maps)
    values, reasons, curves = {}, {}, {}
    for name, path in metrics.items():
        (found,) = (
            one for one in read_json(path)["values"] if one["primary"] and one["defect_type"] == ALL
        )
        values[name] = float("nan") if found["value"] is None else found["value"]
        if found["reason"]:
            reasons[name] = found["reason"]
        if found["curve"]:
            curves[name] = found["curve"]
    return Result(
        algorithm,
        category,
        info.ids,
        read_maps(maps, info.primary_map),
        read_scores(maps, info.primary_score),
        values,
        reasons,
        curves,
    )


def compare(*results: Result) -> pd.DataFrame:
    """Tabulate the metrics of some results, to three digits."""
    rows = {result.algorithm: result.metrics for result in results}
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def show(first: Category | Result, *others: Result, count: int = 6) -> Picture:
    """Draw images and, below them, their defects' outlines and each result's map over the image.

    Of a category, ``count`` test images are shown: a good one, then each defect type in turn. A
    result's colours run from the lowest 1st to the highest 99.9th percentile of its maps shown; the
    number below is the image's score.

    Raises
    ------
    ValueError
        If results are of several categories.
    """
    category = first if isinstance(first, Category) else first.category
    results = [one for one in (first, *others) if isinstance(one, Result)]
    if any(one.category.name != category.name for one in results):
        raise ValueError("results of several categories: show them one by one")
    test = category.table[category.table["split"] == "test"].reset_index(drop=True)
    ids = choose(test, count)
    images, masks = category.images(ids), list(category.truth(ids).masks)

    def tiles(maps: np.ndarray) -> np.ndarray:
        return Block("", images, masks, maps, ids).tiles(TILE, category.colour_map)

    plain = tiles(np.zeros((len(ids), 1, 1), np.float32))
    rows, notes = {"image": plain[:, 0], "defect": plain[:, 1]}, {}
    for result in results:
        places = [result.ids.index(one) for one in ids]
        rows[result.algorithm] = tiles(result.maps[places])[:, 3]
        notes[result.algorithm] = [f"{score:.3g}" for score in result.scores[places]]
    names = [one.removeprefix("test/") for one in ids]
    alt = f"{category.name}: {', '.join(rows)} of {', '.join(names)}"
    return _grid(rows, names, notes, alt)


def _grid(
    rows: Mapping[str, np.ndarray],
    names: Sequence[str],
    notes: Mapping[str, Sequence[str]],
    alt: str,
) -> Picture:
    """Lay tiles (N, side, side, 3) out in lines, a name above each column, notes below tiles."""
    width, height = 0.9 + 1.04 * len(names), 0.25 + 1.16 * len(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        axes = figure.subplots(len(rows), len(names), squeeze=False)
        figure.subplots_adjust(0.9 / width, 0.14 / height, 1, 1 - 0.22 / height, 0.04, 0.16)
        for line, (title, tiles) in enumerate(rows.items()):
            for column, tile in enumerate(tiles):
                one = axes[line, column]
                one.imshow(tile, interpolation="antialiased")
                one.set(xticks=[], yticks=[])
                one.spines[:].set_visible(False)
                if title in notes:
                    one.set_xlabel(notes[title][column], fontsize=7, labelpad=1)
            axes[line, 0].set_ylabel(title.replace("_", "\n"), fontsize=8, rotation=0, ha="right")
        for one, name in zip(axes[0], names, strict=True):
            one.set_title(name, fontsize=7, pad=3, loc="center")
        return _encoded(figure, "jpeg", alt, {"quality": 80})


def curves(*results: Result, metric: str = "image_auroc") -> Picture:
    """Draw the curve behind a metric, of some results: by default the ROC over images.

    Raises
    ------
    ValueError
        If a result has no such curve: the metric has none, is undefined, or was not asked for.
    """
    for result in results:
        if metric not in result.curves:
            known = ", ".join(result.curves) or "none"
            raise ValueError(f"{result.algorithm}: no curve of {metric}; there are: {known}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for number, result in enumerate(results):
            (x, horizontal), (y, vertical), *_ = result.curves[metric].items()
            label = f"{result.algorithm}: {result.metrics[metric]:.3f}"
            axes.plot(horizontal, vertical, color=COLOURS[number % len(COLOURS)], label=label)
            axes.set(xlabel=x, ylabel=y)
        axes.set_title(f"{metric} on {results[0].category.name}", fontsize=10)
        axes.legend(fontsize=8)
        alt = f"{metric}: {', '.join(result.algorithm for result in results)}"
        return _encoded(figure, "png", alt)


def _encoded(
    figure: Figure, kind: str, alt: str, settings: Mapping[str, Any] | None = None
) -> Picture:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=DPI, pil_kwargs=dict(settings or {}))
    return Picture(stream.getvalue(), kind, alt)
