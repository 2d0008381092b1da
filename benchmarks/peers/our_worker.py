"""One measurement of our side (``against_anomalib.py`` calls it), or its samples."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import AbsentError, Job, Method, main
from torch import Tensor

from algorithms import base
from algorithms.base import Context
from algorithms.blocks.coreset import coverage_radius, greedy_coreset, random_projection
from stages.backbone import Backbone
from stages.demo_images.machined import render
from stages.devices import prepare, seed_everything

STARTS = 10  # PatchCore's default


def backbone(model: str, layers: Sequence[int]) -> Backbone:
    """A backbone with random weights: the same ones, however many layers are asked for."""
    config = {
        "model": model,
        "weights": {"source": "random", "seed": 0},
        "layers": {f"stride{2 ** (layer + 1)}": layer for layer in layers},
        "reduction": 1,
        "scale": 1,
        "padding": "zeros",
    }
    return Backbone(config)


class Features:
    """Batches of features in the order of the images, computed as they are asked for."""

    def __init__(self, network: Backbone, batches: Sequence[Tensor]) -> None:
        self.network, self.batches = network, batches
        self.given, self.seconds = 0, 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for images in self.batches:
            start = time.perf_counter()
            with torch.no_grad():
                layers = list(self.network(images).values())
            self.seconds += time.perf_counter() - start
            self.given += 1
            yield layers


class Ours(Method):
    """An algorithm of ours, as the stages run it, but for files."""

    def __init__(self, job: Job, images: Tensor) -> None:
        if job["algorithm"] not in base.names():
            raise AbsentError(f"algorithm {job['algorithm']} is not registered")
        prepare("cpu", job["threads"])
        self.network = backbone(job["backbone"], job["layers"])
        with torch.no_grad():
            shapes = [tuple(layer.shape[1:]) for layer in self.network(images[:1]).values()]
        height, width = images.shape[-2:]
        context: Any = Context(
            (height, width), tuple(shapes), len(images), seed=0, device=torch.device("cpu")
        )
        seed_everything(0, 0)
        self.algorithm = base.create(job["algorithm"], job["ours"], context)
        self.seen: Sequence[Tensor] = []
        self.spent = 0.0

    def features(self, images: Tensor) -> list[Tensor]:
        return list(self.network(images).values())

    def fit(self, batches: Sequence[Tensor]) -> None:
        self.train(batches)
        self.ready()

    def train(self, batches: Sequence[Tensor]) -> int:
        loader = Features(self.network, batches)
        self.seen = batches
        self.algorithm.train_one_epoch(loader)
        self.spent += loader.seconds
        return loader.given  # more than batches, where an epoch is several passes

    def backbone_seconds(self) -> float:
        return self.spent

    def ready(self) -> None:
        self.algorithm.before_eval(Features(self.network, self.seen))

    def predict(self, images: Tensor) -> Tensor:
        prediction = self.algorithm.predict(self.features(images))
        return prediction.maps[self.algorithm.primary[0]]


def choose(rows: Tensor, size: int, dimensions: int | None) -> Tensor:
    """The coreset as PatchCore makes it, of projected rows or of the rows themselves."""
    generator = torch.Generator().manual_seed(0)
    if dimensions is not None:
        rows = random_projection(rows, dimensions, generator)
    return greedy_coreset(rows, size, STARTS, generator)


def make_samples(folder: Path, counts: Sequence[int], models: Sequence[str]) -> None:
    """Write what both sides read: images, weights, and the coreset's rows."""
    sys.path.append(str(Path(__file__).parents[1]))
    from coreset import patches  # type: ignore[import-not-found]

    count, size, rows, columns = counts
    pictures = [render(np.random.default_rng(number), None, size)[0] for number in range(count)]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    torch.save((pixels - 0.45) / 0.225, folder / "images.pt")
    for model in models:
        network = backbone(model, (1, 2, 3, 4))
        torch.save(dict(network.model.state_dict()), folder / f"{model}.pt")
    table = patches(rows, columns, torch.Generator().manual_seed(rows))
    torch.save(table, folder / "rows.pt")


if __name__ == "__main__":
    if sys.argv[1] == "--samples":
        make_samples(Path(sys.argv[2]), [int(text) for text in sys.argv[3:7]], sys.argv[7:])
    elif sys.argv[1] == "--radius":
        table, picks = (torch.load(path) for path in sys.argv[2:])
        print(coverage_radius(table, picks))
    else:
        main(Ours, choose)
