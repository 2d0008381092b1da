"""PatchCore: the distance to the nearest normal patch.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022 (arXiv 2106.08265).

Every position of the feature maps is described by the mean features of its 3 x 3 neighbourhood
(``blocks/patches.py``). A greedy coreset of all training patches is the memory bank
(``blocks/coreset.py``). A test patch is scored by the squared distance to its nearest bank member,
a map by those scores, upsampled and smoothed, and an image by its largest patch score
s* = max_patches min_bank |x - m|^2, taken before smoothing. An ensemble has a bank for each of
several backbones and averages their scores and maps, each in units of its own mean training score.

Verified
--------
The embedding against cutting and pooling every patch as the authors do; patch scores, maps and the
re-weighted score against brute force; the coreset against a loop that follows the paper, and its
covering radius against anomalib's (``benchmarks/``).

Note
----
The authors bring an ensemble's members to one scale by the minimum and maximum over all test
images, which makes each image's map depend on the others; the unit here comes from training.
As in the authors' code, and unlike the paper's text, the image score is not re-weighted by the
density around the bank member; ``reweight_neighbours`` adds the paper's score as a second method:
s = (1 - exp|m_test - m*| / sum_{m in N_b(m*)} exp|m_test - m|) s*, with plain distances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.base import Algorithm, Batch, Context, Loader, Prediction, register
from algorithms.blocks.coreset import greedy_coreset, random_projection
from algorithms.blocks.maps import gaussian_smooth, upsample
from algorithms.blocks.neighbours import nearest_distance, nearest_members
from algorithms.blocks.patches import embed, embedding_kernels

UNIT_PATCHES = 10_000


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' main run (WideResNet-50-2, 224 px)."""

    patch_size: int = 3
    pretrain_dimension: int | None = 1024  # bins per layer; null: one per channel
    target_dimension: int | None = 1024  # of the embedding; null: all bins
    coreset_ratio: float = 0.1  # 1: keep every patch
    projection_dimension: int = 128  # the coreset is searched in this many dimensions
    coreset_starts: int = 10
    neighbours: int = 1  # bank members whose squared distances are averaged
    reweight_neighbours: int = 0  # b of the paper's re-weighted score; 0: leave it out
    sigma: float = 4.0  # of the Gaussian smoothing, in pixels of the map


def reweighted_score(patch: Tensor, bank: Tensor, neighbours: int) -> Tensor:
    """Score of a patch by how far, and how crowded, the bank's nearest member is.

    Parameters
    ----------
    patch
        The image's most anomalous patch (D,).
    bank
        (M, D).
    neighbours
        b, the bank members nearest to the patch's nearest one m*, which is one of them.
    """
    member = nearest_members(patch[None], bank, 1)[1][0]  # m*
    crowd = nearest_members(bank[member], bank, neighbours)[1][0]
    nearest = (bank[member] - patch).norm(dim=1)[0]
    distances = (bank[crowd] - patch).norm(dim=1)
    return (1 - torch.exp(nearest - distances.logsumexp(dim=0))) * nearest


class Member:
    """One backbone's memory bank."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], parameters: Hyperparameters) -> None:
        self.parameters = parameters
        self.grid = shapes[0][1:]
        self.kernels = embedding_kernels(
            [shape[0] for shape in shapes],
            parameters.patch_size,
            parameters.pretrain_dimension,
            parameters.target_dimension,
        )
        self.bank = torch.empty(0)
        self.unit = torch.ones(())  # what scores are divided by

    def fit(self, batches: Iterable[Batch], images: int, generator: torch.Generator) -> Tensor:
        """Choose the bank; return all training patches (N * H * W, D)."""
        patches = self._embed_all(batches, images)
        self.bank = patches
        if self.parameters.coreset_ratio < 1:
            size = max(1, int(len(patches) * self.parameters.coreset_ratio))
            projected = random_projection(patches, self.parameters.projection_dimension, generator)
            chosen = greedy_coreset(projected, size, self.parameters.coreset_starts, generator)
            self.bank = patches[chosen]
        return patches

    def _embed_all(self, batches: Iterable[Batch], images: int) -> Tensor:
        patches, start = torch.empty(0), 0  # written into one allocation
        for batch in batches:
            rows = embed(batch, self.kernels).flatten(0, 1)
            if not start:
                patches = rows.new_empty(images * self.grid[0] * self.grid[1], rows.shape[1])
            patches[start : start + len(rows)] = rows
            start += len(rows)
        return patches

    def measure_unit(self, patches: Tensor, generator: torch.Generator) -> None:
        """Take for unit the mean score of training patches (the bank's own, 0, among them)."""
        drawn = torch.randperm(len(patches), generator=generator)[:UNIT_PATCHES]
        unit = nearest_distance(patches[drawn.to(patches.device)], self.bank).mean()
        self.unit = unit if unit > 0 else torch.ones_like(unit)  # all are in the bank

    def score(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patch scores (P,) of one image's patches (P, D), and its re-weighted score."""
        if self.parameters.neighbours == 1:
            scores = nearest_distance(patches, self.bank)
        else:
            nearest, _ = nearest_members(patches, self.bank, self.parameters.neighbours)
            scores = nearest.mean(dim=1)
        worst = scores.argmax()
        neighbours = self.parameters.reweight_neighbours
        if not neighbours:
            return scores, scores[worst]
        return scores, reweighted_score(patches[worst], self.bank, neighbours)


@register("patchcore")
class PatchCore(Algorithm):
    """A memory bank of normal patches, or one for each backbone; see the module's text."""

    inputs = "features"
    prediction_parameters = ("neighbours", "reweight_neighbours", "sigma")
    primary = ("nearest", "nearest")
    shuffle = False
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        layers = len(context.shapes) // context.members
        self.parts = [slice(n * layers, (n + 1) * layers) for n in range(context.members)]
        self.members = [Member(context.shapes[part], parameters) for part in self.parts]

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.context.seed)
        for member, part in zip(self.members, self.parts, strict=True):
            batches = (batch[part] for batch in loader)
            patches = member.fit(batches, self.context.n_train, generator)
            if len(self.members) > 1:
                member.measure_unit(patches, generator)
        return {}

    def predict(self, batch: Batch) -> Prediction:
        maps, nearest, reweighted = [], [], []
        for member, part in zip(self.members, self.parts, strict=True):
            results = [member.score(patches) for patches in embed(batch[part], member.kernels)]
            patch_scores = torch.stack([result[0] for result in results]) / member.unit
            grids = patch_scores.unflatten(1, member.grid)
            maps.append(upsample(grids, self.context.image_size))
            nearest.append(patch_scores.amax(dim=1))
            reweighted.append(torch.stack([result[1] for result in results]) / member.unit)
        scores = {"nearest": torch.stack(nearest).mean(dim=0)}
        if self.parameters.reweight_neighbours:
            scores["reweighted"] = torch.stack(reweighted).mean(dim=0)
        mean = torch.stack(maps).mean(dim=0)
        return Prediction({"nearest": gaussian_smooth(mean, self.parameters.sigma)}, scores)

    def state(self) -> dict[str, Tensor]:
        banks = {f"bank.{number}": member.bank for number, member in enumerate(self.members)}
        return banks | {f"unit.{number}": member.unit for number, member in enumerate(self.members)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for number, member in enumerate(self.members):
            member.bank, member.unit = state[f"bank.{number}"], state[f"unit.{number}"]
