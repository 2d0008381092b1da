"""Lay out one algorithm's anomaly maps beside images and ground truth, all categories on a sheet.

Which images are shown is decided by the index alone: a good one, then the first of each defect
type, then the second of each, by id. A map is the primary method's; one colour scale per category
runs from the lowest 1st to the highest 99.9th percentile of the maps that it shows.
"""

from __future__ import annotations

import itertools
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
from stages.artifacts.images import evaluation_mask, load_image, load_mask
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.artifacts.maps import read_info, read_maps, read_scores
from stages.command import Options, run

COLUMNS = ("image", "ground truth", "anomaly map", "overlay")
# Pixels: the sheet's width, between blocks, between tiles, above a block, above a row of tiles.
WIDTH, MARGIN, GAP, HEADER, LABEL = 1600, 20, 4, 46, 19
LARGEST_TILE = 256
OUTLINE = (0, 229, 160)
OVERLAY = 0.75  # opacity of the strongest anomaly; the weakest is transparent


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
            values = np.clip((values - low) / (high - low or 1), 0, 1)[..., np.newaxis]
            colours = mpl.colormaps[colour_map](values[..., 0])[..., :3] * 255
            blend = picture * (1 - OVERLAY * values) + colours * OVERLAY * values
            rows.append([picture, truth, colours.astype(np.uint8), blend.astype(np.uint8)])
        return np.array(rows)

    def height(self, side: int) -> int:
        """Pixels that the block takes, its header included."""
        return HEADER + len(self.labels) * (LABEL + side + GAP)


@dataclass(frozen=True)
class Sheet:
    """Where blocks go: side by side, line by line."""

    across: int  # blocks in a line
    side: int  # of a tile, in pixels

    @classmethod
    def of(cls, blocks: int) -> Sheet:
        """Choose for a number of blocks: few large ones, or three in a line."""
        across = {1: 1, 2: 2, 4: 2}.get(blocks, 3)
        free = (WIDTH - MARGIN * (across + 1)) // across - GAP * (len(COLUMNS) - 1)
        return cls(across, min(LARGEST_TILE, free // len(COLUMNS)))

    @property
    def block_width(self) -> int:
        """Pixels from the left edge of a block's first tile to the right edge of its last."""
        return len(COLUMNS) * (self.side + GAP) - GAP

    def compose(self, blocks: Sequence[Block], settings: Mapping[str, Any], title: str) -> Figure:
        """Draw all blocks and their labels, pixel by pixel."""
        lines = list(itertools.batched(blocks, self.across))
        width = MARGIN + self.across * (self.block_width + MARGIN)
        heights = [max(block.height(self.side) for block in line) for line in lines]
        height = HEADER + sum(heights) + MARGIN * len(lines)
