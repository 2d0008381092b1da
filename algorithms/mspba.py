"""MSPBA: distances between embeddings of small, middle and large patches.

Tsai, Wu and Lai, "Multi-Scale Patch-Based Representation Learning for Image Anomaly Detection and
Segmentation", WACV 2022; it builds on Patch SVDD (Yi and Yoon, ACCV 2020).

One pretrained network, tuned further, and a small encoder per scale map image patches of 16, 32 and
64 px to 64 numbers in (-1, 1). They learn from normal images, without labels,

    loss = sum_scales  L_position + lambda L_svdd + L_cluster,

* L_position: from the embeddings of two neighbouring patches, tell in which of 12 directions the
  second lies (cross-entropy), with noise on both;
* L_svdd: a patch is like one moved by few pixels and unlike one far away,
  |h1 - h2| - cos(h1, h2) + cos(h1, h3);
* L_cluster: squared distance to the nearest of 50 centres, found by k-means now and then.

The memory bank holds the embeddings of all training patches, at all places of a regular grid. A
test patch is scored by its distance to the nearest, a pixel by the mean over all patches that cover
it, and the three scales' maps are added. Their maximum is the image score.

Verified
--------
Maps against sums over patches, the loss's terms against NumPy, positions against the rule of the
fact sheet, encoders by the shapes they leave (1 x 1 from each patch). Published numbers were not
reproduced: VGG16's weights are not at hand.

Note
----
In the authors' code features are detached in L_cluster, which then trains nothing; here it does, as
the paper says (``cluster_weight: 0`` is their code). Their optimiser holds the network three times
and moves it three times a step; here once. The last epoch counts, not the best on test images.
Searches are exact. A network's batch norm stays as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import (
    Batch,
    Context,
    GradientAlgorithm,
    Loader,
    Prediction,
    register,
    take_step,
)
from algorithms.blocks.coreset import greedy_coreset
from algorithms.blocks.crops import DIRECTIONS, cover, cut, draw_corners, grid
from algorithms.blocks.neighbours import nearest_distance

CHUNK = 2**21  # pixels of patches that are embedded at a time


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code; one entry per scale, as many as the backbone has layers."""

    patch_sizes: tuple[int, ...] = (16, 32, 64)
    steps: tuple[int, ...] = (4, 4, 16)  # between patches that are compared
    kernels: tuple[tuple[int, ...], ...] = ((3, 3, 3, 2), (3, 3, 2, 2, 2), (2, 2, 2, 1))
    widths: tuple[tuple[int, ...], ...] = (
        (128, 64, 32, 64),
        (256, 128, 128, 64, 64),
        (256, 128, 64, 64),
    )
    learning_rate: float = 1e-5
    svdd_weight: float = 1e-3  # lambda
    cluster_weight: float = 1.0
    cluster_start: int = 10  # epochs before L_cluster counts
    cluster_every: int = 5  # epochs between two searches for centres
    clusters: int = 50
    draws_per_image: int = 100  # an epoch draws so many patches of each kind per training image
    samples: int = 64  # patches of each kind in a step
    noise: float = 0.02  # of shifts per channel and of pixels, with images in [0, 1]
    own_normalisation: bool = False  # images as the backbone wants them, not minus their mean
    bank_ratio: float = 1.0  # of the training patches; below 1 a greedy coreset


def encoder(channels: int, kernels: Sequence[int], widths: Sequence[int]) -> nn.Sequential:
    """Convolutions without padding, LeakyReLU between them and tanh at the end."""
    layers: list[nn.Module] = []
    for (before, after), kernel in zip(pairwise([channels, *widths]), kernels, strict=True):
        layers += [nn.Conv2d(before, after, kernel), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers[:-1], nn.Tanh(), nn.Flatten())


class DirectionClassifier(nn.Module):
    """From h1 - h2 (B, D) to 12 directions; the last weights are drawn once and stay."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        widths = (dimensions, 128, 256, 512)
        layers = [(nn.Linear(*pair), nn.LeakyReLU(0.1)) for pair in pairwise(widths)]
        self.hidden = nn.Sequential(*(part for layer in layers for part in layer))
        last = nn.Linear(widths[-1], DIRECTIONS)
        last.weight = nn.Parameter(functional.normalize(last.weight.detach(), dim=0))
        last.weight.requires_grad_(False)
        self.last = last

    def forward(self, difference: Tensor) -> Tensor:
        return self.last(self.hidden(difference))


def svdd_loss(first: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Mean of |h1 - h2| - cos(h1, h2) + cos(h1, h3) over embeddings (B, D)."""
    alike = functional.cosine_similarity(first, near) - functional.cosine_similarity(first, far)
    return ((first - near).norm(dim=1) - alike).mean()


def share_parameters(network: nn.Module, owner: nn.Module) -> None:
    """Make a network that ends earlier work with the parameters and buffers of a longer one."""
    for name, module in network.named_modules():
        source = owner.get_submodule(name)
        module._parameters.update({key: source._parameters[key] for key in module._parameters})
        module._buffers.update({key: source._buffers[key] for key in module._buffers})


@register("mspba")
class Mspba(GradientAlgorithm):
    """Three scales of patch embeddings; see the module's text."""

    inputs = "images"
    builds_on_backbone = True
    primary = ("sum", "maximum")
    shuffle = False  # it draws patches of all images
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        assert context.backbone is not None
        self.scales = range(len(parameters.patch_sizes))
        longest = context.backbone()  # one network for all scales, cut for each
        self.cuts = [context.backbone(scale) for scale in self.scales]
        for one in self.cuts:
            share_parameters(one, longest)
        self.encoders, self.classifiers = nn.ModuleList(), nn.ModuleList()
        for scale, size in enumerate(parameters.patch_sizes):
            with torch.no_grad():
                probe = self.cuts[scale](torch.zeros(1, 3, size, size, device=context.device))[0]
            kernels, widths = parameters.kernels[scale], parameters.widths[scale]
            if probe.shape[-1] - sum(kernels) + len(kernels) != 1:
                raise ValueError(
                    f"MSPBA: kernels {kernels} do not bring a patch of {size} px, which is "
                    f"{probe.shape[-1]} wide in layer {scale}, down to 1 x 1"
                )
            self.encoders.append(encoder(probe.shape[1], kernels, widths))
            self.classifiers.append(DirectionClassifier(widths[-1]))
        longest.requires_grad_(True)
        parts = {"backbone": longest, "encoders": self.encoders, "classifiers": self.classifiers}
        self.network = nn.ModuleDict(parts).to(context.device)
        trained = [one for one in self.network.parameters() if one.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=parameters.learning_rate)
        self.std = torch.tensor(context.std, device=context.device)[:, None, None]
        self.mean_image = torch.zeros(context.shapes[0], device=context.device)
        self.banks: list[Tensor] = [torch.empty(0) for _ in self.scales]
        self.centres: list[Tensor] = [torch.empty(0) for _ in self.scales]

    def _prepared(self, images: Tensor) -> Tensor:
        if self.parameters.own_normalisation:
            return images
        return (images - self.mean_image) * self.std

    def _embed(self, scale: int, patches: Tensor) -> Tensor:
        return self.encoders[scale](self.cuts[scale](patches)[0])

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        images = torch.cat([batch[0] for batch in loader])
        if not self.epoch:
            self.mean_image = images.mean(dim=0)
        images = self._prepared(images)
        since = self.epoch - self.parameters.cluster_start
        if since >= 0 and since % self.parameters.cluster_every == 0:
            self.centres = [self._find_centres(scale, images) for scale in self.scales]
        steps = math.ceil(len(images) * self.parameters.draws_per_image / self.parameters.samples)
        total = 0.0
        for _ in range(steps):
            total += take_step(self.optimizer, self.loss([images])).item()
        self.epoch += 1
        return {"loss": total / steps}

    def loss(self, batch: Batch) -> Tensor:
        return torch.stack([self._scale_loss(scale, batch[0]) for scale in self.scales]).sum()

    def _scale_loss(self, scale: int, images: Tensor) -> Tensor:
        size, count = self.parameters.patch_sizes[scale], self.parameters.samples
        sides = (images.shape[2], images.shape[3])
        pair, triple = draw_corners(count, size, sides), draw_corners(count, size, sides)
        rows = torch.randint(len(images), (2, count)).to(images.device)
        noisy = [
            self._add_noise(cut(images, rows[0], pair[name].to(images.device), size))
            for name in ("first", "neighbour")
        ]
        clear = [
            cut(images, rows[1], triple[name].to(images.device), size)
            for name in ("first", "near", "far")
        ]
        one, other, first, near, far = self._embed(scale, torch.cat(noisy + clear)).split(count)
        directions = self.classifiers[scale](one - other)
        loss = functional.cross_entropy(directions, pair["direction"].to(images.device))
        loss = loss + self.parameters.svdd_weight * svdd_loss(first, near, far)
        if len(self.centres[scale]):
            distances = torch.cdist(first, self.centres[scale]).amin(dim=1)
            loss = loss + self.parameters.cluster_weight * distances.square().mean()
        return loss

    def _add_noise(self, patches: Tensor) -> Tensor:
        shift = torch.randn(*patches.shape[:2], 1, 1) + torch.randn(patches.shape)
        shift = (self.parameters.noise * shift).to(patches)
        # In units of [0, 1], which only images minus their mean are in.
        return patches + (shift / self.std if self.parameters.own_normalisation else shift)

    @torch.no_grad()
    def _find_centres(self, scale: int, images: Tensor) -> Tensor:
        size, sides = self.parameters.patch_sizes[scale], (images.shape[2], images.shape[3])
        parts = []
        for _ in range(self.parameters.clusters):  # 256 patches for each centre
            rows = torch.randint(len(images), (256,)).to(images.device)
            corners = draw_corners(256, size, sides)["first"].to(images.device)
            parts.append(self._embed(scale, cut(images, rows, corners, size)))
        means = KMeans(
            self.parameters.clusters, n_init=20, max_iter=30, random_state=self.context.seed
        ).fit(torch.cat(parts).cpu().numpy())
        return torch.from_numpy(means.cluster_centers_).to(images)

    def _places(self, scale: int) -> tuple[Tensor, Tensor]:
        size, step = self.parameters.patch_sizes[scale], self.parameters.steps[scale]
        rows, columns = (grid(side, size, step) for side in self.context.image_size)
        return rows, columns

    def _embed_grid(self, scale: int, images: Tensor) -> Tensor:
        """Embeddings (N, places, D) of all patches of the grid."""
        rows, columns = self._places(scale)
        corners = torch.cartesian_prod(rows, columns).to(images.device)
        size = self.parameters.patch_sizes[scale]

        def chunks(number: int) -> Iterator[Tensor]:
            image = torch.full((len(corners),), number, device=images.device)
            for part in range(0, len(corners), max(1, CHUNK // size**2)):
                some = slice(part, part + max(1, CHUNK // size**2))
                yield self._embed(scale, cut(images, image[some], corners[some], size))

        return torch.stack([torch.cat(list(chunks(n))) for n in range(len(images))])

    @torch.no_grad()
    def before_eval(self, loader: Loader) -> None:
        parts: list[list[Tensor]] = [[] for _ in self.scales]
        for batch in loader:
            images = self._prepared(batch[0])
            for scale in self.scales:
                parts[scale].append(self._embed_grid(scale, images).flatten(0, 1))
        generator = torch.Generator().manual_seed(self.context.seed)
        for scale in self.scales:
            bank = torch.cat(parts[scale])
            if self.parameters.bank_ratio < 1:
                size = max(1, int(len(bank) * self.parameters.bank_ratio))
                bank = bank[greedy_coreset(bank, size, 10, generator)]
            self.banks[scale] = bank

    def predict(self, batch: Batch) -> Prediction:
        images = self._prepared(batch[0])
        maps = torch.zeros(len(images), *self.context.image_size, device=images.device)
        for scale, size in enumerate(self.parameters.patch_sizes):
            places = self._places(scale)
            down, across = (
                cover(side, size, starts).to(images)
                for side, starts in zip(self.context.image_size, places, strict=True)
            )
            for number, patches in enumerate(self._embed_grid(scale, images)):
                scores = nearest_distance(patches, self.banks[scale]).sqrt()
                maps[number] += down @ scores.reshape(len(places[0]), -1) @ across.T
        return Prediction({"sum": maps}, {"maximum": maps.amax(dim=(1, 2))})

    def state(self) -> dict[str, Tensor]:
        banks = {f"bank.{scale}": bank for scale, bank in enumerate(self.banks)}
        return super().state() | banks | {"mean_image": self.mean_image}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.banks = [state[f"bank.{scale}"] for scale in self.scales]
        self.mean_image = state["mean_image"]
        own = (*(f"bank.{scale}" for scale in self.scales), "mean_image")
        super().load_state({key: value for key, value in state.items() if key not in own})

    def training_state(self) -> dict[str, Tensor]:
        centres = {f"centres.{scale}": centre for scale, centre in enumerate(self.centres)}
        return super().training_state() | centres

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        rest = dict(state)
        device = self.context.device
        self.centres = [rest.pop(f"centres.{scale}").to(device) for scale in self.scales]
        super().load_training_state(rest)
