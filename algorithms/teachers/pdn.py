"""PDN: a small patch description network that gives a large backbone's features.

Batzner et al., "EfficientAD", WACV 2024 (arXiv 2303.14535), section 3.1.

Two layers of a backbone, at strides 8 and 16 of a large image, are turned into patch embeddings as
PatchCore does (``blocks/patches.py``): the mean over 3 x 3 positions, the coarser layer resized to
the finer, channels averaged to 384. A padded PDN (``blocks/pdn.py``) sees the same image at half of
its size and learns from any images to give these numbers, each normalised,

    loss = mean ( PDN(image / 2) - (embedding(image) - mean) / std )^2,

mean and std per channel, over 10,000 images. Some images turn grey, for both.

Verified
--------
Targets against the embedding by hand, their statistics and the loss against NumPy, names of
published weights; that a PDN learns.

Note
----
The target's details are nelson1425/EfficientAD's, since the authors published no code. PUAD's
teacher has no neighbourhood and averages groups of four channels: ``neighbourhood: 1`` and
``pretrain_dimension: null``. Images are read at the backbone's size and halved by averaging 2 x 2
pixels; theirs are resized twice from the file. Mean and std come from one pass over the images
instead of two over different ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Context, Loader, Teacher, register_teacher
from algorithms.blocks.patches import LayerKernel, embed, embedding_kernels
from algorithms.blocks.pdn import LAYERS, Pdn, channel_statistics, random_grayscale

PUBLISHED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of their images


@dataclass(frozen=True)
class Hyperparameters:
    """The paper's values, details of nelson1425/EfficientAD."""

    size: Literal["small", "medium"] = "small"
    width: float = 1.0  # factor of all channels, the descriptor's among them
    descriptor: int = 384  # channels of the descriptor at width 1
    reduction: int = 2  # side of the backbone's image over the PDN's
    neighbourhood: int = 3  # side of the positions that the target averages; PUAD: 1
    pretrain_dimension: int | None = 1024  # bins per layer; null: one per channel
    grayscale: float = 0.1  # share of images without colour
    statistics_images: int = 10_000  # for the target's mean and std
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5


def convert_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published PDN's weights to a teacher's.

    Parameters
    ----------
    weights
        Keys are ``0.weight``, ``3.weight`` and so on (nelson1425) or ``conv1.weight``,
        ``conv2.weight`` (anomalib, PUAD).

    Raises
    ------
    ValueError
        If they are no PDN's.
    """
    names = {key: re.fullmatch(r"(?:conv)?(\d+)\.(weight|bias)", key) for key in weights}
    layers = sorted({int(match[1]) for match in names.values() if match})
    kernels = [
        weights[key].shape[-1]
        for layer in layers
        for key, match in names.items()
        if match and int(match[1]) == layer and match[2] == "weight"
    ]
    known = [[kernel for kernel, _ in plan] for plan in LAYERS.values()]
    if None in names.values() or kernels not in known or len(weights) != 2 * len(kernels):
        raise ValueError(f"not a published PDN's weights: {sorted(weights)[:5]}")
    return {
        f"pdn.convolutions.{layers.index(int(match[1]))}.{match[2]}": weights[key]
        for key, match in names.items()
        if match
    }


@register_teacher("pdn")
class PdnTeacher(Teacher):
    """A PDN that learns from a backbone; see the module's text.

    Its state holds the PDN under ``pdn.``, the statistics of the target, and ``mean`` and ``std``
    (3, 1, 1), by which the PDN's images are normalised.
    """

    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.outputs = round(parameters.width * parameters.descriptor)
        self.pdn = Pdn.scaled(parameters.size, self.outputs, parameters.width)
        self.network = nn.ModuleDict({"pdn": self.pdn})
        for name in ("mean", "std"):
            values = torch.tensor(getattr(context, name))[:, None, None]
            self.network.register_buffer(name, values)
        self.network.register_buffer("target_mean", torch.zeros(self.outputs, 1, 1))
        self.network.register_buffer("target_std", torch.ones(self.outputs, 1, 1))
        self.network.to(context.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
        )

    @cached_property
    def backbone(self) -> nn.Module:
        """The network to learn from, which published weights do without."""
        if self.context.backbone is None:
            raise ValueError("a PDN learns from a backbone: give one, and two of its layers")
        return self.context.backbone()

    @cached_property
    def kernels(self) -> list[LayerKernel]:
        """The embedding's."""
        with torch.no_grad():
            layers = self.backbone(
                torch.zeros(1, 3, *self.context.image_size).to(self._buffer("mean"))
            )
        values, channels = self.parameters, [layer.shape[1] for layer in layers]
        return embedding_kernels(
            channels, values.neighbourhood, values.pretrain_dimension, self.outputs
        )

    def _buffer(self, name: str) -> Tensor:
        return self.network.get_buffer(name)

    @torch.no_grad()
    def embedding(self, images: Tensor) -> Tensor:
        """What the backbone says of images: (N, D, h, w)."""
        layers = self.backbone(images)
        return embed(layers, self.kernels).mT.unflatten(2, layers[0].shape[-2:])

    def _augmented(self, images: Tensor) -> Tensor:
        mean, std = self._buffer("mean"), self._buffer("std")
        return (random_grayscale(images * std + mean, self.parameters.grayscale) - mean) / std

    def prepare(self, loader: Loader) -> None:
        batches = -(-self.parameters.statistics_images // len(next(iter(loader))[0]))
        found = channel_statistics(
            self.embedding(self._augmented(batch[0])) for batch in islice(loader, batches)
        )
        for name, values in zip(("target_mean", "target_std"), found, strict=True):
            self._buffer(name).copy_(values[:, None, None])

    def loss(self, images: Tensor) -> Tensor:
        images = self._augmented(images)
        target = (self.embedding(images) - self._buffer("target_mean")) / self._buffer("target_std")
        small = functional.avg_pool2d(images, self.parameters.reduction)
        descriptors = self.pdn(small, padded=True)
        if descriptors.shape != target.shape:
            raise ValueError(
                f"PDN: {tuple(descriptors.shape[2:])} descriptors, but the backbone's finest "
                f"layer is {tuple(target.shape[2:])}: change `reduction`"
            )
        return functional.mse_loss(descriptors, target)

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {key: torch.tensor(values)[:, None, None] for key, values in PUBLISHED.items()}
        return self.state() | own | convert_weights(weights)
