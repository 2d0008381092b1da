"""Patch network: a small CNN that describes patches as a large one does.

Bergmann et al., "Uninformed Students", CVPR 2020 (arXiv 1911.02357), section 3.1.

A network that sees p x p pixels (``blocks/dense_patches.py``) maps a patch x to a descriptor T(x)
of 128 numbers. It learns from any images, without labels: a linear layer D shall decode the
descriptor into what a backbone, given the same p x p pixels, says of them, its last feature map
averaged over space,

    L_k = |D(T(x)) - backbone(x)|^2,

while descriptors' dimensions shall tell different things: with c their correlation matrix
(128 x 128) over the batch, L_c = sum_{i != j} c_ij^2. A third term wants a patch nearer to its
like, moved and noisy, than to one of another image: with d the squared distances,

    L_m = max(0, margin + d(x, x+) - min(d(x, x-), d(x+, x-))).

The loss is their sum, weighted by 1 (L_k), 0 (L_m) and 1 (L_c) for MVTec AD. A patch is 1/16 to 1/4
of an image wide, and resized to p: as if the image had been resized to 4p to 16p first.

Verified
--------
Each term against NumPy; windows by what may be drawn and what is cut out; that descriptors come to
decode into the backbone's.

Note
----
There is no code of the authors. The two unofficial ones correlate a batch's samples with one
another instead of the dimensions, and crop differently from each other. What neither has (sizes of
windows, grey patches, L_m with its margin, shift and noise) follows the paper from memory, and
patches turn grey whether L_m counts or not. ``standardise`` is for backbones with features of
another size than ResNet's, against which compactness would count too much or too little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Context, Loader, Teacher, register_teacher
from algorithms.blocks.dense_patches import PatchNetwork, channel_counts

GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Hyperparameters:
    """The paper's values."""

    receptive_field: int = 33  # p: 17, 33 or 65
    patches_per_image: int = 1  # in a step; more save reading images
    width: float = 1.0  # of the hidden layers, over the paper's
    dimensions: int = 128  # of a descriptor
    distillation_weight: float = 1.0  # lambda_k
    metric_weight: float = 0.0  # lambda_m
    compactness_weight: float = 1.0  # lambda_c
    margin: float = 1.0
    noise: float = 0.1  # standard deviation, on the moved patch, with images in [0, 1]
    smallest_image: float = 4.0  # side of an image, in sides of a patch, is drawn from here ...
    largest_image: float = 16.0  # ... to here
    grey: float = 0.1  # share of patches without colour
    standardise: bool = False  # what is decoded: each of the backbone's channels in its own units
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5


def compactness(descriptors: Tensor) -> Tensor:
    """Sum of the squared correlations of different dimensions over a batch (B, D)."""
    unit = functional.normalize(descriptors - descriptors.mean(dim=0), dim=0)
    correlations = unit.T @ unit
    return correlations.square().sum() - correlations.diagonal().square().sum()


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Mean over triplets of descriptors (B, D); the nearer of two pairs is the negative one."""
    near = (anchor - positive).square().sum(dim=1)
    far = torch.minimum(
        (anchor - negative).square().sum(dim=1), (positive - negative).square().sum(dim=1)
    )
    return functional.relu(margin + near - far).mean()


def draw_windows(
    count: int, sides: tuple[int, int], smallest: float, largest: float
) -> tuple[Tensor, Tensor]:
    """Draw heights and widths (count, 2) and corners (count, 2) of windows inside an image."""
    ratio = smallest + (largest - smallest) * torch.rand(count, 1)
    sizes = (torch.tensor(sides) / ratio).round().long().clamp(min=1)
    corners = (torch.rand(count, 2) * (torch.tensor(sides) - sizes + 1)).long()
    return sizes, corners


def move_windows(sizes: Tensor, corners: Tensor, sides: tuple[int, int]) -> Tensor:
    """Move windows by up to a quarter of their size; they stay inside the image."""
    shift = (torch.rand(corners.shape) - 0.5) * sizes / 2
    return torch.minimum((corners + shift.round().long()).clamp(min=0), torch.tensor(sides) - sizes)


def cut_windows(images: Tensor, sizes: Tensor, corners: Tensor, side: int) -> Tensor:
    """Cut windows out of images (N, 3, H, W), as many of each, and resize them.

    Returns
    -------
    Tensor
        (windows, 3, side, side), those of the first image first.
    """
    patches, share = [], len(sizes) // len(images)
    for number, (size, corner) in enumerate(zip(sizes.tolist(), corners.tolist(), strict=True)):
        rows, columns = (slice(at, at + n) for at, n in zip(corner, size, strict=True))
        window = images[number // share, None, :, rows, columns]
        patches.append(
            functional.interpolate(window, (side, side), mode="bilinear", antialias=True)
        )
    return torch.cat(patches)


@register_teacher("patch_network")
class DistilledPatches(Teacher):
    """A patch network and its decoder, taught by a backbone; see the module's text.

    Its state holds the patch network under ``patches.``, its receptive field, and the ``mean`` and
    ``std`` (3, 1, 1) by which its images are normalised.
    """

    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        if context.backbone is None:
            raise ValueError("a patch network distils a backbone: give one, and its last layer")
        p = parameters.receptive_field
        self.backbone = context.backbone()
        with torch.no_grad():
            probe = self.backbone(torch.zeros(1, 3, p, p, device=context.device))[-1]
        channels = channel_counts(p, parameters.width, parameters.dimensions)
        self.patches = PatchNetwork(p, channels)
        self.decode = nn.Linear(parameters.dimensions, probe.shape[1])
        self.network = nn.ModuleDict({"patches": self.patches, "decode": self.decode})
        self.network.register_buffer("receptive_field", torch.tensor(p))
        self.network.register_buffer("feature_mean", torch.zeros(probe.shape[1]))
        self.network.register_buffer("feature_std", torch.ones(probe.shape[1]))
        for name in ("mean", "std"):
            value = torch.tensor(getattr(context, name))[:, None, None]
            self.network.register_buffer(name, value)
        self.network.to(context.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
        )

    @torch.no_grad()
    def prepare(self, loader: Loader) -> None:
        if not self.parameters.standardise:
            return
        said = torch.cat([self._ask(self._draw(batch[0])[0]) for batch in loader])
        self.network.get_buffer("feature_mean").copy_(said.mean(dim=0))
        std = said.std(dim=0, correction=0)
        self.network.get_buffer("feature_std").copy_(torch.where(std > 0, std, 1.0))

    def loss(self, images: Tensor) -> Tensor:
        values = self.parameters
        patches, *moved = self._draw(images, pairs=bool(values.metric_weight))
        with torch.no_grad():
            wanted = self._ask(patches)
        descriptors = self.patches(patches)
        distances = (self.decode(descriptors) - wanted).square().sum(dim=1)
        loss: Tensor = values.distillation_weight * distances.mean()
        loss = loss + values.compactness_weight * compactness(descriptors)
        for one in moved:
            noise = values.noise * torch.randn(one.shape).to(one)
            positive = self.patches(one + noise / self.network.get_buffer("std"))
            others = descriptors.roll(values.patches_per_image, dims=0)  # of other images
            loss = loss + values.metric_weight * triplet_loss(
                descriptors, positive, others, values.margin
            )
        return loss

    def _ask(self, patches: Tensor) -> Tensor:
        """What the backbone says of patches (N, 3, p, p): (N, C)."""
        said: Tensor = self.backbone(patches)[-1].mean(dim=(2, 3))
        mean, std = (self.network.get_buffer(f"feature_{name}") for name in ("mean", "std"))
        return (said - mean) / std

    def _draw(self, images: Tensor, pairs: bool = False) -> list[Tensor]:
        """Draw patches (N, 3, p, p), and with ``pairs`` such from close by."""
        values, sides = self.parameters, (images.shape[2], images.shape[3])
        count = len(images) * values.patches_per_image
        sizes, corners = draw_windows(count, sides, values.smallest_image, values.largest_image)
        without_colour = torch.rand(count, 1, 1, 1).to(images) < values.grey
        places = [corners, move_windows(sizes, corners, sides)] if pairs else [corners]
        return [
            self._greyed(cut_windows(images, sizes, place, values.receptive_field), without_colour)
            for place in places
        ]

    def _greyed(self, patches: Tensor, chosen: Tensor) -> Tensor:
        """Patches (N, 3, p, p), the ``chosen`` ones (N, 1, 1, 1) without their colour."""
        weights = torch.tensor(GREY).to(patches)[:, None, None]
        mean, std = (self.network.get_buffer(name) for name in ("mean", "std"))
        grey = ((patches * std + mean) * weights).sum(dim=1, keepdim=True)
        return torch.where(chosen, (grey - mean) / std, patches)
