"""PPDM: reverse distillation of an image whose normal deformations were undone.

Liu, Chang, Ma, Shan and Chen, "Diversity-Measurable Anomaly Detection", CVPR 2023 (arXiv
2303.05047): the pyramid deformation module of DMAD, before reverse distillation.

What is normal varies in shape, and a student that can draw it all can draw anomalies, too. So a
network looks at the image x and moves its pixels by a coarse and a fine field of offsets towards
what is typical; two inverse fields, c' and f', lead back:

    y = warp(warp(x, c), f),    x ~ warp(warp(y, f'), c').

The frozen encoder's features E of y are redrawn by the student D of reverse distillation. All of
it learns together, the fields through the encoder, which passes gradients on:

    loss = sum_layers (1 - cos(E, D)) + mean |c| + mean |f| + roughness of the four fields
           + gamma mean (warp(warp(y, f'), c') - x)^2  (+ quantisation, in mode sp).

The anomaly map is the student's disagreement, warped back and smoothed, and its maximum the image
score. The map ``offset``, |c'| + |f'|, tells how far pixels had to be moved.

There are two models. For pixels (``px``) the bottleneck is that of reverse distillation. For images
(``sp``) it sees little of the features, 64 channels of each layer, and the coarsest layer's only
as the nearest of 200 codes; codes q and features v learn |sg(v) - q|^2 + |v - sg(q)|^2 / 4.

Verified
--------
Coordinates, warps, offsets, roughness, codes and maps against NumPy, sizes of layers against the
fact sheet, that gradients reach the fields through the frozen encoder and do not move it.

Note
----
* The publication's image-level numbers are those of ``sp``, its pixel-level numbers of ``px``:
  two models, two configurations.
* Its final score adds the offsets' map, scaled by the smallest and largest values of the test set,
  with a weight chosen by category, and counts only where that raises the AUROC. Here the map alone
  is the score, and the offsets' is a method of its own.
* Batch norm is in evaluation mode in prediction, unlike VisionAD's, which has codes in both modes.
* An encoder whose features are not of a ResNet's size wants ``feature_scale``: codes start near 0
  and squared distances to them are part of the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import (
    Batch,
    Context,
    GradientAlgorithm,
    Loader,
    Prediction,
    register,
    set_rate,
)
from algorithms.blocks.deformation import Deformation, Fields, deformation_loss, lengths, warp
from algorithms.blocks.discrete import straight_through
from algorithms.blocks.maps import gaussian_smooth
from algorithms.reverse_distillation import (
    Decoder,
    OneClassEmbedding,
    conv,
    disagreement,
    flat_cosine_loss,
    stage,
)


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code."""

    mode: Literal["px", "sp"] = "px"  # bottleneck for pixels, or, with codes, for images
    learning_rate: float = 0.005
    beta1: float = 0.5
    beta2: float = 0.999
    weight_decay: float = 0.01
    cosine_epochs: int = 400  # in which the rate falls to 0
    width: int = 64  # channels of the deformation network
    coarse_scale: float = 0.0625  # largest offset, in halves of the image's side
    fine_scale: float = 0.0234375
    gamma: float = 1.0  # weight of leading back
    codes: int = 200  # mode sp
    reduced_channels: int = 64  # of each layer, mode sp
    commitment: float = 0.25  # mode sp
    bottleneck_blocks: int = 3
    decoder_blocks: tuple[int, ...] = (3, 4, 6)  # read in the direction of decoding
    output_relu: bool = True  # the encoder's maps end in a ReLU (ResNets); false: they are signed
    feature_scale: float = 1.0  # factor that brings features to the size of a ResNet's
    sigma: float = 4.0


class Codebook(nn.Module):
    """Features (N, C, h, w) -> the nearest code at each position, and the loss of both."""

    def __init__(self, codes: int, channels: int, commitment: float) -> None:
        super().__init__()
        self.commitment = commitment
        self.codes = nn.Parameter(torch.empty(codes, channels).uniform_(-1 / codes, 1 / codes))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            nearest = torch.cdist(features.flatten(2).mT, self.codes).argmin(dim=2)
        chosen = functional.embedding(nearest, self.codes).mT.reshape(features.shape)
        loss = functional.mse_loss(chosen, features.detach())
        loss = loss + self.commitment * functional.mse_loss(features, chosen.detach())
        return straight_through(features, chosen), loss


class QuantisedEmbedding(nn.Module):
    """The bottleneck of mode sp: few channels of each layer, and codes of the coarsest."""

    def __init__(
        self, channels: tuple[int, int, int], blocks: int, width: int, codebook: Codebook
    ) -> None:
        super().__init__()
        self.codebook = codebook
        self.reduce = nn.ModuleList(
            nn.Sequential(
                conv(count, width, 3),
                nn.ReLU(),
                *(part for _ in range(halvings) for part in (conv(width, width, 3, 2), nn.ReLU())),
            )
            for count, halvings in zip(channels, (2, 1, 0), strict=True)
        )
        self.squeeze = stage(3 * width + channels[2], 2 * channels[2], blocks, "down")

    def forward(self, features: Batch) -> tuple[Tensor, Tensor]:
        codes, loss = self.codebook(features[2])
        reduced = [one(layer) for one, layer in zip(self.reduce, features, strict=True)]
        return self.squeeze(torch.cat([*reduced, codes], dim=1)), loss


@register("ppdm")
class Ppdm(GradientAlgorithm):
    """Deformation, frozen encoder, bottleneck and student; see the module's text."""

    inputs = "images"
    builds_on_backbone = True
    prediction_parameters = ("sigma",)
    primary = ("cosine", "cosine")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        assert context.backbone is not None
        self.encoder = context.backbone()  # not part of the state: the context makes it again
        with torch.no_grad():
            shapes = self.encoder(torch.zeros(1, *context.shapes[0], device=context.device))
        if len(shapes) != 3:
            raise ValueError("PPDM wants three layers: strides 4, 8 and 16")
        c1, c2, c3 = (layer.shape[1] for layer in shapes)
        self.embedding: nn.Module = OneClassEmbedding((c1, c2, c3), parameters.bottleneck_blocks)
        if parameters.mode == "sp":
            self.embedding = QuantisedEmbedding(
                (c1, c2, c3),
                parameters.bottleneck_blocks,
                parameters.reduced_channels,
                Codebook(parameters.codes, c3, parameters.commitment),
            )
        self.decoder = Decoder(
            (c1, c2, c3), tuple(parameters.decoder_blocks), parameters.output_relu
        )
        self.deformation = Deformation(
            parameters.width, parameters.coarse_scale, parameters.fine_scale
        )
        parts = [self.deformation, self.embedding, self.decoder]
        self.network = nn.ModuleList(parts).to(context.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=parameters.learning_rate,
            betas=(parameters.beta1, parameters.beta2),
            weight_decay=parameters.weight_decay,
        )

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        done = min(1.0, self.epoch / self.parameters.cosine_epochs)
        rate = self.parameters.learning_rate * (1 + math.cos(math.pi * done)) / 2
        set_rate(self.optimizer, rate)
        return super().train_one_epoch(loader)

    def _redraw(self, straight: Tensor) -> tuple[Batch, Batch, Tensor]:
        """Encoder's features of straightened images, the student's, and the codes' loss."""
        features = [self.parameters.feature_scale * layer for layer in self.encoder(straight)]
        if self.parameters.mode == "sp":
            embedding, loss = self.embedding(features)
        else:
            embedding, loss = self.embedding(features), straight.new_zeros(())
        return features, self.decoder(embedding), loss

    def loss(self, batch: Batch) -> Tensor:
        (images,) = batch
        fields: Fields = self.deformation(images)
        straight = warp(warp(images, fields.coarse), fields.fine)
        features, redrawn, loss = self._redraw(straight)
        loss = loss + flat_cosine_loss(features, redrawn)
        return loss + deformation_loss(images, straight, fields, self.parameters.gamma)

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        (images,) = batch
        fields: Fields = self.deformation(images)
        features, redrawn, _ = self._redraw(warp(warp(images, fields.coarse), fields.fine))
        maps = disagreement(features, redrawn, self.context.image_size)[:, None]
        maps = warp(warp(maps, fields.fine_back), fields.coarse_back)[:, 0]
        offsets = warp(lengths(fields.fine_back)[:, None], fields.coarse_back)[:, 0]
        offsets = offsets + lengths(fields.coarse_back)
        found = {
            name: gaussian_smooth(one, self.parameters.sigma)
            for name, one in (("cosine", maps), ("offset", offsets))
        }
        return Prediction(found, {name: one.amax(dim=(1, 2)) for name, one in found.items()})
