"""Readers and loaders: how images and cached features become an algorithm's batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stages.artifacts.images import load_image


class Reader(Protocol):
    """Random access to the images or features of one split."""

    def __len__(self) -> int: ...

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(C, H, W) of each array of a batch."""

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the images ``rows`` as float32 arrays (B, C, H, W)."""


class ImageReader(AbstractContextManager["ImageReader"]):
    """Decodes, resizes and normalises images: ``[(B, 3, size, size)]``, float32.

    Parameters
    ----------
    mean, std
        Of the three channels, in [0, 1].
    threads
        Images decoded at a time (Pillow lets go of the interpreter while it works).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        crop: float,
        interpolation: str,
        mean: Sequence[float],
        std: Sequence[float],
        threads: int = 1,
    ) -> None:
        self.paths = list(paths)
        self.size, self.crop, self.interpolation = size, crop, interpolation
        self.mean = np.asarray(mean, np.float32)[:, None, None]
        self.std = np.asarray(std, np.float32)[:, None, None]
        self.pool = ThreadPoolExecutor(threads)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((3, self.size, self.size),)

    def _load(self, row: int) -> np.ndarray:
        pixels = load_image(self.paths[row], self.size, self.crop, self.interpolation)
        return (pixels.transpose(2, 0, 1).astype(np.float32) / 255 - self.mean) / self.std

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        return [np.stack(list(self.pool.map(self._load, rows)))]

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()


class Subset:
    """Some rows of a reader."""

    def __init__(self, reader: Reader, rows: np.ndarray) -> None:
        self.reader, self.rows = reader, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.reader.shapes

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        return self.reader.read(self.rows[rows])


class ReadImages:
    """An image reader as algorithms see it: ``algorithms.base.Images``."""

    def __init__(self, reader: ImageReader, device: torch.device) -> None:
        self.reader, self.device = reader, device

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return images (B, 3, H, W), float32, on the device."""
        return torch.from_numpy(self.reader.read(np.asarray(rows))[0]).to(self.device)


class BatchLoader:
    """One epoch's batches, on the device.

    Parameters
    ----------
    order
        Row numbers in the order of the epoch.
    """

    def __init__(
        self, reader: Reader, order: np.ndarray, batch_size: int, device: torch.device
    ) -> None:
        self.reader, self.order = reader, order
        self.batch_size, self.device = batch_size, device

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for start in range(0, len(self.order), self.batch_size):
            arrays = self.reader.read(self.order[start : start + self.batch_size])
            yield [torch.from_numpy(array).to(self.device) for array in arrays]


def epoch_order(count: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Row numbers of an epoch: a function of seed and epoch alone, so that it can be resumed."""
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng([seed, epoch]).permutation(count)


def held_out(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split row numbers into those to train on and those held out: the same for every seed."""
    order = np.random.default_rng(0).permutation(count)
    cut = count - max(1, round(share * count))
    return np.sort(order[:cut]), np.sort(order[cut:])
