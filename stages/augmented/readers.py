"""Readers of augmented training images: the images as they are, then changed copies of each.

With N images, rows 0 to N - 1 are the images, rows c N to (c + 1) N - 1 their copies number c.
Images are changed anew in every epoch; features are those of copies that were drawn once
(``stages/augment.py``). Neither depends on the algorithm, and neither touches what is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stages.artifacts.images import load_image
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.augmented.draws import augment, draw
from stages.batches import ImageReader, Reader, Subset, held_out
from stages.inputs import open_reader


class Copies:
    """Changed copies of the images of a reader, all copies number 1 first.

    Parameters
    ----------
    settings
        ``protocol.augmentation``.
    seed
        Returns the seed in force: of the epoch, where images are changed anew in each.
    """

    def __init__(
        self, reader: ImageReader, settings: Mapping[str, Any], seed: Callable[[], int]
    ) -> None:
        self.reader, self.settings, self.seed = reader, settings, seed

    def __len__(self) -> int:
        return len(self.reader) * int(self.settings["copies"])

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(3, size, size)."""
        return self.reader.shapes

    def _load(self, row: int, seed: int) -> np.ndarray:
        reader = self.reader
        path = reader.paths[row % len(reader)]
        pixels = load_image(path, reader.size, reader.crop, reader.interpolation)
        changed = augment(pixels, draw(self.settings, seed, row)).transpose(2, 0, 1)
        return (changed.astype(np.float32) / 255 - reader.mean) / reader.std

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the copies ``rows`` (B,) as float32 [(B, 3, size, size)]."""
        seed = self.seed()  # here: other threads know no seed of torch's
        return [np.stack(list(self.reader.pool.map(lambda row: self._load(int(row), seed), rows)))]


class Together:
    """Two readers as one: the rows of the first, then those of the second."""

    def __init__(self, first: Reader, second: Reader) -> None:
        self.first, self.second = first, second
        self.shapes = first.shapes  # (C, H, W) of each array of a batch

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the rows (B,), in that order, as float32 [(B, C, H, W)]."""
        rows = np.asarray(rows)
        late = rows >= len(self.first)
        batch = [np.empty((len(rows), *shape), np.float32) for shape in self.shapes]
        for reader, here, start in ((self.first, ~late, 0), (self.second, late, len(self.first))):
            if here.any():
                for array, part in zip(batch, reader.read(rows[here] - start), strict=True):
                    array[here] = part
        return batch


def copies_of(rows: np.ndarray, count: int, copies: int) -> np.ndarray:
    """Row numbers, among the copies of ``count`` images, of those of the images ``rows``."""
    return np.concatenate([rows + count * copy for copy in range(copies)])


@contextmanager
def open_training(job: Job, threads: int) -> Iterator[tuple[Reader, Reader | None]]:
    """Open what ``stages.inputs.open_training`` does, and copies of what is trained on beside it.

    The trainer seeds torch for every epoch by the job's seed and the epoch: that seed decides how
    images are changed, so that a training that was killed and resumed sees the same.
    """
    settings, share = job.parameters["augmentation"], job.parameters.get("validation")
    with ExitStack() as stack:
        reader = open_reader(job, "train", threads)
        stack.enter_context(reader)
        changed: Reader
        if isinstance(reader, ImageReader):
            changed = Copies(reader, settings, torch.initial_seed)
        else:
            features = replace(job, inputs={**job.inputs, "features": job.inputs["augmented"]})
            of_copies = open_reader(features, "train", threads)
            stack.enter_context(of_copies)
            changed = of_copies
        if share is None:
            yield Together(reader, changed), None
        elif len(usable(read_index(job.input("index")), "validation")):
            own = open_reader(job, "validation", threads)
            stack.enter_context(own)
            yield Together(reader, changed), own
        else:
            count = len(reader)
            kept, held = held_out(count, share)
            copies = Subset(changed, copies_of(kept, count, settings["copies"]))
            yield Together(Subset(reader, kept), copies), Subset(reader, held)
