"""Random scores: the chance level, and the smallest example of the contract.

Each image's maps are drawn from a generator seeded with the run's seed and the image's own
pixels, so that predictions depend neither on batching nor on the order of the images.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.base import Algorithm, Batch, Loader, Prediction, register


@dataclass(frozen=True)
class Hyperparameters:
    """The random classifier has none."""


@register("random")
class Random(Algorithm):
    """Two methods, uniform and normal noise, to prove that several may stand side by side."""

    inputs = "images"
    primary = ("uniform", "uniform")

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        return {}

    def predict(self, batch: Batch) -> Prediction:
        maps: dict[str, list[Tensor]] = {"uniform": [], "normal": []}
        scores: dict[str, list[Tensor]] = {"uniform": [], "normal": []}
        for image in batch[0]:
            generator = torch.Generator().manual_seed(
                zlib.crc32(image.cpu().numpy().tobytes(), self.context.seed)
            )
            for method, draw in (("uniform", torch.rand), ("normal", torch.randn)):
                maps[method].append(draw(self.context.image_size, generator=generator))
                scores[method].append(draw((), generator=generator))
        return Prediction(
            {method: torch.stack(values) for method, values in maps.items()},
            {method: torch.stack(values) for method, values in scores.items()},
        )

    def state(self) -> dict[str, Tensor]:
        return {"seed": torch.tensor(self.context.seed)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is learnt."""
