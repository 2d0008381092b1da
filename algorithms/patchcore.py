"""PatchCore: the distance to the nearest normal patch.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022 (arXiv 2106.08265).

Every position of the feature maps is described by the mean features of its 3 x 3 neighbourhood
(``blocks/patches.py``). A greedy coreset of all training patches is the memory bank
(``blocks/coreset.py``). A test patch is scored by the squared distance to its nearest bank member,
a map by those scores, upsampled and smoothed, and an image by its largest patch score
s* = max_patches min_bank |x - m|^2, taken before smoothing.

Note
----
As in the authors' code, and unlike the paper's text, the image score is not re-weighted by the
density around the bank member; ``reweight_neighbours`` adds the paper's score as a second method:
s = (1 - exp|m_test - m*| / sum_{m in N_b(m*)} exp|m_test - m|) s*, with plain distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.base import Algorithm, Batch, Context, Loader, Prediction, register
from algorithms.blocks.coreset import greedy_coreset, random_projection
from algorithms.blocks.maps import gaussian_smooth, upsample
from algorithms.blocks.patches import embed, embedding_kernels


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


def squared_distances(patches: Tensor, bank: Tensor) -> Tensor:
    """Squared Euclidean distances (P, M) of patches (P, D) to bank members (M, D)."""
    squares = bank.square().sum(dim=1) + patches.square().sum(dim=1, keepdim=True)
    return torch.addmm(squares, patches, bank.T, alpha=-2).clamp_(min=0)


def reweighted_score(
    patch: Tensor, bank: Tensor, member: Tensor, neighbours: int, score: Tensor
) -> Tensor:
    """Re-weight an image's score by how crowded the bank is around the nearest member.

    Parameters
    ----------
    patch
        The image's most anomalous patch (D,).
    member
        Row number of its nearest bank member m*.
    neighbours
        b, the bank members nearest to m*, itself included.
    """
    around = squared_distances(bank[member][None], bank)[0]
    crowd = bank[around.topk(min(neighbours, len(bank)), largest=False).indices]
    distances = squared_distances(patch[None], crowd)[0].sqrt()
    return (1 - torch.softmax(distances, dim=0)[0]) * score


@register("patchcore")
class PatchCore(Algorithm):
    """A memory bank of normal patches; see the module's text."""

    inputs = "features"
    prediction_parameters = ("neighbours", "reweight_neighbours", "sigma")
    primary = ("nearest", "nearest")
    shuffle = False
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.grid = context.shapes[0][1:]
        self.kernels = embedding_kernels(
            [shape[0] for shape in context.shapes],
            parameters.patch_size,
            parameters.pretrain_dimension,
            parameters.target_dimension,
        )
        self.bank = torch.empty(0)

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        patches = self._embed_all(loader)
        if self.parameters.coreset_ratio >= 1:
            self.bank = patches
            return {}
        size = max(1, int(len(patches) * self.parameters.coreset_ratio))
        generator = torch.Generator().manual_seed(self.context.seed)
        projected = random_projection(patches, self.parameters.projection_dimension, generator)
        chosen = greedy_coreset(projected, size, self.parameters.coreset_starts, generator)
        self.bank = patches[chosen]
        return {}

    def _embed_all(self, loader: Loader) -> Tensor:
        """All training patches (N * H * W, D), written into one allocation."""
        patches, start = torch.empty(0), 0
        for batch in loader:
            rows = embed(batch, self.kernels).flatten(0, 1)
            if not start:
                count = self.context.n_train * self.grid[0] * self.grid[1]
                patches = rows.new_empty(count, rows.shape[1])
            patches[start : start + len(rows)] = rows
            start += len(rows)
        return patches

    def predict(self, batch: Batch) -> Prediction:
        results = [self._score(patches) for patches in embed(batch, self.kernels)]
        patch_scores = torch.stack([result[0] for result in results])
        maps = upsample(patch_scores.unflatten(1, self.grid), self.context.image_size)
        scores = {"nearest": patch_scores.amax(dim=1)}
        if self.parameters.reweight_neighbours:
            scores["reweighted"] = torch.stack([result[1] for result in results])
        return Prediction({"nearest": gaussian_smooth(maps, self.parameters.sigma)}, scores)

    def _score(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patch scores (P,) of one image's patches (P, D), and its re-weighted score."""
        distances = squared_distances(patches, self.bank)
        nearest, members = distances.topk(
            min(self.parameters.neighbours, len(self.bank)), dim=1, largest=False
        )
        scores = nearest.mean(dim=1)
        worst = scores.argmax()
        neighbours = self.parameters.reweight_neighbours
        if not neighbours:
            return scores, scores[worst]
        return scores, reweighted_score(
            patches[worst], self.bank, members[worst, 0], neighbours, nearest[worst, 0].sqrt()
        )

    def state(self) -> dict[str, Tensor]:
        return {"bank": self.bank}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.bank = state["bank"]
