"""CFA: features drawn into hyperspheres around the normal ones.

Lee, Lee and Song, "CFA: Coupled-hypersphere-based Feature Adaptation for Target-Oriented Anomaly
Localization", IEEE Access 2022 (arXiv 2206.04325).

The maps of three layers, averaged over 3 x 3 windows and stacked at the finest grid, pass through
one trainable 1 x 1 convolution that also sees each position's coordinates: the patch descriptor f.
Before training, the mean of f over the training images gives one centre c per position; this
memory bank then stays as it is. Training draws every patch to its K nearest centres, wherever they
lie, until it is within a learnable radius r, and keeps the next J outside. With d_1 <= d_2 <= ...
the squared distances of a patch to all centres, and means over images, positions and neighbours,

    loss = 1/nu ( mean_{k <= K} max(0, d_k - r^2) + mean_{k > K} max(0, r^2 - d_k - alpha) ).

At test, with D_k = sqrt(d_k), a patch scores its distance to the nearest centre, weighted by how
clearly that is the nearest: D_1 exp(-D_1) / sum_{k <= K} exp(-D_k). The scores, upsampled and
smoothed, are the map, and its maximum is the image score.

Verified
--------
* Descriptor, loss, gradients and score against NumPy or a dense version of the formulas.
* With WideResNet-50-2, 1792 + 2 channels in and 1792 out: 3.2 M weights, as in the authors' code.

Note
----
* The authors drop the last incomplete batch of each epoch; here every image counts. Their bank is
  a running mean of the outputs of batches. f is affine, so the same bank is f of the mean features.
* Their scores are also scaled by extremes of the test set, which leaves all ranks as they are.
* r, alpha, the softmax and Adam's steps have the unit of the features, for which ResNets' stand.
* Only the K + J nearest distances reach the loss, so only these are kept for its gradient.
* ``maximum`` is the authors' image score; VisionAD adds that before smoothing, ``patch``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from algorithms.base import Batch, Context, GradientAlgorithm, Loader, Prediction, register
from algorithms.blocks.maps import gaussian_smooth, upsample
from algorithms.blocks.neighbours import nearest_members

BLOCK = 1024  # patches at a time whose differences to their nearest centres are in memory


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code."""

    attracted: int = 3  # K, nearest centres that attract a patch, and that score it
    repelled: int = 3  # J, centres next in distance, which repel it
    initial_radius: float = 1e-5  # r before training
    margin: float = 0.1  # alpha: repulsion acts only this deep within the sphere
    nu: float = 1e-3
    bank_reduction: int = 1  # gamma_c: k-means leaves positions / gamma_c centres; 1: keep all
    width_reduction: int = 1  # gamma_d: the descriptor has channels / gamma_d dimensions
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    sigma: float = 4.0  # of the Gaussian smoothing, in pixels of the map


def coordinates(height: int, width: int) -> Tensor:
    """Row and column of each position, from -1 to 1: (2, H, W)."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


class Descriptor(nn.Module):
    """Pooled and stacked features with coordinates, linearly mapped; holds the radius, too."""

    places: Tensor

    def __init__(
        self, shapes: tuple[tuple[int, int, int], ...], width_reduction: int, radius: float
    ) -> None:
        super().__init__()
        channels = sum(shape[0] for shape in shapes)
        self.register_buffer("places", coordinates(*shapes[0][1:]), persistent=False)
        self.projection = nn.Conv2d(channels + 2, channels // width_reduction, 1)
        self.radius = nn.Parameter(torch.tensor(radius))

    def forward(self, layers: Batch) -> Tensor:
        """Map [(N, C_layer, h, w)], finest first, to descriptors (N, H * W, D)."""
        size = layers[0].shape[2:]
        pooled = [functional.avg_pool2d(layer, 3, stride=1, padding=1) for layer in layers]
        fine = [
            pooled[0],
            *(functional.interpolate(layer, size, mode="bilinear") for layer in pooled[1:]),
        ]
        places = self.places.expand(len(layers[0]), -1, -1, -1)
        result: Tensor = self.projection(torch.cat([*fine, places], dim=1))
        return result.flatten(2).mT


def _distances_of_block(patches: Tensor, bank: Tensor, members: Tensor) -> Tensor:
    return (patches[:, None] - bank[members]).square().sum(dim=2)


def nearest_distances(patches: Tensor, bank: Tensor, count: int) -> Tensor:
    """Squared distances (P, count), ascending, of patches (P, D) to their nearest centres.

    Differentiable in the patches. Differences (block, count, D) are computed again for the
    gradient instead of kept: 4 images would take 0.7 GB with WideResNet-50-2.
    """
    with torch.no_grad():
        members = nearest_members(patches.detach(), bank, count)[1]
    blocks = zip(patches.split(BLOCK), members.split(BLOCK), strict=True)
    return torch.cat(
        [
            checkpoint(
                _distances_of_block,
                part,
                bank,
                rows,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for part, rows in blocks
        ]
    )


def hypersphere_loss(
    distances: Tensor, radius: Tensor, attracted: int, margin: float, nu: float
) -> Tensor:
    """Attraction into the sphere and repulsion out of it, from squared distances (P, K + J)."""
    near, far = distances[:, :attracted], distances[:, attracted:]
    attraction = functional.relu(near - radius.square()).mean()
    repulsion = functional.relu(radius.square() - far - margin).mean()
    return (attraction + repulsion) / nu


def certain_distance(squared: Tensor) -> Tensor:
    """Score patches (P,): D_1 softmax(-D)_1, from squared distances (P, K), ascending."""
    distances = squared.sqrt()
    return distances[:, 0] * torch.softmax(-distances, dim=1)[:, 0]


@register("cfa")
class Cfa(GradientAlgorithm):
    """A descriptor trained towards a fixed bank of centres; see the module's text."""

    inputs = "features"
    prediction_parameters = ("sigma",)
    primary = ("distance", "maximum")
    parameters: Hyperparameters
    network: Descriptor

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.grid = context.shapes[0][1:]
        self.centres = self.grid[0] * self.grid[1] // parameters.bank_reduction
        wanted = parameters.attracted + parameters.repelled
        if self.centres < wanted:
            raise ValueError(f"CFA needs at least {wanted} centres, not {self.centres}")
        self.network = Descriptor(
            context.shapes, parameters.width_reduction, parameters.initial_radius
        ).to(context.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
            amsgrad=True,
        )
        self.bank = torch.empty(0)  # (M, D), from the first epoch on

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        if not len(self.bank):
            self.bank = self._initial_bank(loader)
        losses = super().train_one_epoch(loader)
        return losses | {"radius": self.network.radius.item()}

    @torch.no_grad()
    def _initial_bank(self, loader: Loader) -> Tensor:
        totals = [torch.zeros(shape, device=self.context.device) for shape in self.context.shapes]
        images = 0
        for batch in loader:
            for total, layer in zip(totals, batch, strict=True):
                total += layer.sum(dim=0)
            images += len(batch[0])
        bank: Tensor = self._describe([total[None] / images for total in totals]).contiguous()
        if self.parameters.bank_reduction == 1:
            return bank
        clusters = KMeans(self.centres, max_iter=3000, random_state=self.context.seed)
        return torch.from_numpy(clusters.fit(bank.cpu().numpy()).cluster_centers_).to(bank)

    def loss(self, batch: Batch) -> Tensor:
        parameters = self.parameters
        distances = nearest_distances(
            self._describe(batch),
            self.bank,
            parameters.attracted + parameters.repelled,
        )
        return hypersphere_loss(
            distances,
            self.network.radius,
            parameters.attracted,
            parameters.margin,
            parameters.nu,
        )

    def _describe(self, batch: Batch) -> Tensor:
        patches: Tensor = self.network(batch).flatten(0, 1)
        return patches

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        patches = self._describe(batch)
        nearest = nearest_distances(patches, self.bank, self.parameters.attracted)
        patch_scores = certain_distance(nearest).unflatten(0, (len(batch[0]), *self.grid))
        maps = upsample(patch_scores, self.context.image_size)
        maps = gaussian_smooth(maps, self.parameters.sigma)
        return Prediction(
            {"distance": maps},
            {"maximum": maps.amax(dim=(1, 2)), "patch": patch_scores.amax(dim=(1, 2))},
        )

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"bank": self.bank}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.bank = state["bank"]
        super().load_state({key: value for key, value in state.items() if key != "bank"})
