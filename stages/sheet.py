"""Lay out one algorithm's anomaly maps beside images and ground truth, all categories on a sheet.

Which images are shown is decided by the index alone: a good one, then the first of each defect
type, then the second of each, by id. A map is the primary method's; one colour scale per category
runs from the lowest 1st to the highest 99.9th percentile of the maps that it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from stages.artifacts.files import StageError, atomic_path
from stages.artifacts.images import load_image, united_mask
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.artifacts.maps import read_info, read_maps, read_scores
from stages.command import Options, run
from stages.drawing import STYLE, save
from stages.shown import in_turn

COLUMNS = ("image", "ground truth", "anomaly map", "overlay")
# Pixels: the sheet's width, between blocks, between tiles, above a block, above a row of tiles.
WIDTH, MARGIN, GAP, HEADER, LABEL = 1600, 20, 4, 46, 19
LARGEST_TILE = 256
OVERLAY = 0.75  # opacity of the strongest anomaly; the weakest is transparent
OUTLINE = (0, 229, 160)
GREY = "#555555"


@dataclass(frozen=True)
class Block:
    """What the sheet shows of one category."""

    category: str
    images: list[np.ndarray]  # R x (S, S, 3) uint8
    masks: list[np.ndarray]  # R x (E, E) bool
    maps: np.ndarray  # (R, H, W) float32
    labels: list[str]

    @property
    def scale(self) -> tuple[float, float]:
        """Map values at the lower and the upper end of the category's colours."""
        low, high = np.percentile(self.maps, [1, 99.9], axis=(1, 2))
        return float(low.min()), float(high.max())

    def tiles(self, side: int, colour_map: str) -> np.ndarray:
        """Draw the tiles (R, columns, side, side, 3) uint8."""
        low, high = self.scale
        rows = []
        for image, mask, one in zip(self.images, self.masks, self.maps, strict=True):
            picture = resize(Image.fromarray(image), side, Image.Resampling.BILINEAR)
            truth = picture.copy()
            truth[outline(resize(Image.fromarray(mask), side, Image.Resampling.NEAREST))] = OUTLINE
            values = resize(Image.fromarray(one), side, Image.Resampling.BILINEAR)
            values = np.clip((values - low) / (high - low or 1), 0, 1)
            colours = mpl.colormaps[colour_map](values)[..., :3] * 255
            opacity = OVERLAY * values[..., np.newaxis]
            blend = picture * (1 - opacity) + colours * opacity
            rows.append([picture, truth, colours.astype(np.uint8), blend.astype(np.uint8)])
        return np.array(rows)

    def height(self, side: int) -> int:
        """Pixels that the block takes, its header included."""
        return HEADER + len(self.labels) * (LABEL + side + GAP)


@dataclass(frozen=True)
class Layout:
    """Where blocks go: side by side, line by line."""

    across: int  # blocks in a line
    side: int  # of a tile, in pixels

    @classmethod
    def of(cls, blocks: int) -> Layout:
        """Choose for a number of blocks: few large ones, or three in a line."""
        across = {1: 1, 2: 2, 4: 2}.get(blocks, 3)
        free = (WIDTH - MARGIN * (across + 1)) // across - GAP * (len(COLUMNS) - 1)
        return cls(across, min(LARGEST_TILE, free // len(COLUMNS)))

    @property
    def block_width(self) -> int:
        """Pixels from the left edge of a block's first tile to the right edge of its last."""
        return len(COLUMNS) * (self.side + GAP) - GAP

    def draw(self, blocks: Sequence[Block], settings: Mapping[str, Any], title: str) -> Figure:
        """Draw all blocks and their labels; one array is the whole sheet, pixel by pixel."""
        starts = range(0, len(blocks), self.across)
        lines = [blocks[start : start + self.across] for start in starts]
        heights = [max(block.height(self.side) for block in line) + MARGIN for line in lines]
        size = (MARGIN + self.across * (self.block_width + MARGIN), HEADER + sum(heights))
        canvas = np.full((size[1], size[0], 3), 255, np.uint8)
        # Inches and points from pixels, so that the sheet has the same pixels at every dpi.
        dpi = settings["dpi"]
        figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi)

        def write(left: int, bottom: int, text: str, pixels: int, **style: Any) -> None:
            x, y = left / size[0], 1 - bottom / size[1]
            figure.text(x, y, text, fontsize=pixels * 72 / dpi, **style)

        write(MARGIN, 30, title, 19, weight="bold")
        top = HEADER
        for line, line_height in zip(lines, heights, strict=True):
            for place, block in enumerate(line):
                left = MARGIN + place * (self.block_width + MARGIN)
                right = left + self.block_width
                scale = "maps from {:.3g} to {:.3g}".format(*block.scale)
                write(left, top + 18, block.category, 16, weight="bold")
                write(right, top + 18, scale, 12, ha="right", color=GREY)
                for column, name in enumerate(COLUMNS):
                    write(left + column * (self.side + GAP), top + 38, name, 12, color=GREY)
                y = top + HEADER
                rows = block.tiles(self.side, settings["colour_map"])
                for label, tiles in zip(block.labels, rows, strict=True):
                    write(left, y + 13, label, 12)
                    y += LABEL
                    for column, tile in enumerate(tiles):
                        x = left + column * (self.side + GAP)
                        canvas[y : y + self.side, x : x + self.side] = tile
                    y += self.side + GAP
            top += line_height
        figure.figimage(canvas)
        return figure


def resize(image: Image.Image, side: int, resampling: Image.Resampling) -> np.ndarray:
    """Bring an image to a tile's size (side, side, ...)."""
    return np.array(image.resize((side, side), resampling))


def outline(mask: np.ndarray) -> np.ndarray:
    """Mark the border of a mask (H, W) bool: its outermost two pixels, none outside it."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1))


def choose(table: pd.DataFrame, count: int) -> list[str]:
    """Choose ids of images: a good one, then defect types in turn; further good ones fill up."""
    good, defective = in_turn(table)
    return [*good[:1], *defective, *good[1:]][:count]


def read_block(category: str, maps: Path, index: Path, parameters: Mapping[str, Any]) -> Block:
    """Read the chosen images of one category with their masks, maps and scores.

    Raises
    ------
    StageError
        If the index has an image that the maps do not have.
    """
    info = read_info(maps)
    table = usable(read_index(index), "test").set_index("image_id", drop=False)
    chosen = choose(table, parameters["figures"]["sheet_rows"])
    if missing := sorted(set(chosen) - set(info.ids)):
        raise StageError(f"{maps}: no map of {missing[0]}, listed in {index}; run snakemake again")
    places = np.array([info.ids.index(image_id) for image_id in chosen])
    scores = read_scores(maps, info.primary_score)[places]
    folder, crop = Path(parameters["root"]) / category, parameters["crop"]
    images = [
        load_image(folder / path, parameters["image_size"], crop, parameters["interpolation"])
        for path in table.loc[chosen, "path"]
    ]
    masks = [
        united_mask(folder, names, parameters["evaluation_size"], crop)
        for names in table.loc[chosen, "masks"]
    ]
    labels = [
        f"{image_id.removeprefix('test/')}   score {score:.4g}"
        for image_id, score in zip(chosen, scores, strict=True)
    ]
    return Block(category, images, masks, read_maps(maps, info.primary_map, places), labels)


def describe(title: str, blocks: Sequence[Block]) -> str:
    """Say in words what a sheet shows."""
    shown = "; ".join(f"{block.category}: {', '.join(block.labels)}" for block in blocks)
    return f"{title}: images, ground truth, anomaly maps and overlays. {shown}."


def body(job: Job, options: Options) -> dict[str, Any]:
    """Draw the sheet of the job's algorithm and data set."""
    parameters = job.parameters
    settings = parameters["figures"]
    sources = zip(parameters["categories"], job.inputs["maps"], job.inputs["index"], strict=True)
    blocks = [read_block(category, maps, index, parameters) for category, maps, index in sources]
    title = f"{job.key['algorithm']} on {job.key['dataset']}"
    # An SVG or a PDF would hold the same pixels at a multiple of the size.
    suffix = "png" if "png" in settings["formats"] else settings["formats"][0]
    with atomic_path(job.outputs["sheet"]) as folder, mpl.rc_context(STYLE):
        folder.mkdir()
        figure = Layout.of(len(blocks)).draw(blocks, settings, title)
        save(figure, folder, "sheet", [suffix], settings["dpi"], describe(title, blocks))
    return {"images": sum(len(block.labels) for block in blocks)}


if __name__ == "__main__":
    run("sheet", __doc__, body)
