"""PFM: what one pretrained network's features foretell of another's.

Wan, Gao, Li and Wen, "Unsupervised Image Anomaly Detection and Segmentation Based on Pretrained
Feature Mapping", IEEE Transactions on Industrial Informatics 2022 (doi 10.1109/TII.2022.3182385).
With ``position: add`` it is PEFM: Wan, Cao, Gao, Shen and Li, "Position Encoding Enhanced Feature
Mapping for Image Anomaly Detection", CASE 2022.

Two networks, both pretrained and frozen, describe each image; f and g are their maps at one level,
every position scaled to unit length. Small networks of 1 x 1 convolutions learn, from normal
images, to tell g from f and f from g, both by way of one shared layer, the bottleneck, of few
channels. With f' told from g and g' from f, the loss of a level and its anomaly map are

    loss = mean_chw (f - f')^2 + mean_chw (g - g')^2,
    map = 1/2 ( sum_c (f - f')^2 + sum_c (g - g')^2 ).

Maps are enlarged and averaged over the levels; the maximum is the image score. PEFM adds a
sinusoidal code of the place (``blocks/positions.py``) to what is mapped from, so that what is
normal may depend on where it is.

Verified
--------
Widths of all layers and the number of parameters (21.55 M for ResNet-34 and ResNet-50) against the
authors' table; a mapping, its loss and the map against NumPy; a training step against three
optimisers, one per level.

Note
----
The first of the configuration's two backbones is the authors' S, the second their T. Levels are
trained together; with no weights in common, that equals the authors' one optimiser for each.
``position: concatenate`` with latents of 200, 400 and 800 is the alternative that VisionAD runs as
PEFM; ``product: true`` is PEFM's other fusion of levels. The authors' normalisation of maps by
their variance is switched off in their code, and left out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Batch, Context, GradientAlgorithm, Prediction, register
from algorithms.blocks.maps import upsample
from algorithms.blocks.positions import position_encoding


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' PFM; one number for each level, finest first."""

    latents: tuple[int, ...] = (200, 400, 900)  # channels of the bottleneck
    learning_rates: tuple[float, ...] = (3e-3, 3e-4, 3e-4)
    weight_decay: float = 1e-5
    position: Literal["none", "add", "concatenate"] = "none"  # how the encoders are told the place
    product: bool = False  # multiply the levels' maps; false: average them


def conv(channels_in: int, channels_out: int) -> nn.Sequential:
    """1 x 1 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


def encoder(channels: int, latent: int, codes: int = 0) -> nn.Sequential:
    """From features and ``codes`` further channels to twice the latent ones."""
    middle = channels // 2 + latent
    return nn.Sequential(conv(channels + codes, middle), conv(middle, 2 * latent))


def decoder(channels: int, latent: int) -> nn.Sequential:
    """From latent channels to features."""
    middle = channels // 2 + latent
    return nn.Sequential(
        conv(latent, 2 * latent), conv(2 * latent, middle), nn.Conv2d(middle, channels, 1)
    )


class Mapping(nn.Module):
    """Both directions of one level.

    Parameters
    ----------
    shapes
        (C, h, w) of the first network's map and of the second's; h and w are the same.
    latent
        Channels of the bottleneck, which both directions share.
    position
        Whether, and how, the encoders are told the place.
    """

    def __init__(
        self, shapes: tuple[tuple[int, int, int], tuple[int, int, int]], latent: int, position: str
    ) -> None:
        super().__init__()
        if shapes[0][1:] != shapes[1][1:]:
            raise ValueError(f"both networks need maps of one size, not {shapes}")
        self.position = position
        wider = position == "concatenate"
        self.encoders = nn.ModuleList(encoder(c, latent, wider * c) for c, _, _ in shapes)
        self.bottleneck = nn.Conv2d(2 * latent, latent, 1)
        # Of the direction's target: the first encoder's output goes to the second decoder.
        self.decoders = nn.ModuleList(decoder(c, latent) for c, _, _ in shapes)
        if position != "none":
            for number, (channels, height, width) in enumerate(shapes):
                code = position_encoding(channels, (height, width))
                self.register_buffer(f"code{number}", code, persistent=False)

    def _encode(self, features: Tensor, number: int) -> Tensor:
        if self.position != "none":
            code = self.get_buffer(f"code{number}").expand_as(features)
            add = self.position == "add"
            features = features + code if add else torch.cat([features, code], dim=1)
        return self.bottleneck(self.encoders[number](features))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Tell ``first`` from ``second``, and ``second`` from ``first``; (N, C, h, w) each."""
        return self.decoders[0](self._encode(second, 1)), self.decoders[1](self._encode(first, 0))


def fuse(maps: Tensor, product: bool) -> Tensor:
    """One map (N, H, W) of those of all levels (L, N, H, W)."""
    return maps.prod(dim=0) if product else maps.mean(dim=0)


@register("pfm")
class PFM(GradientAlgorithm):
    """One mapping per level between two backbones' features; see the module's text."""

    inputs = "features"
    prediction_parameters = ("product",)
    primary = ("error", "maximum")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.levels = len(context.shapes) // 2
        if context.members != 2:
            raise ValueError(f"pfm maps between two backbones, not {context.members}")
        for key in ("latents", "learning_rates"):
            if len(getattr(parameters, key)) != self.levels:
                raise ValueError(f"{key} {getattr(parameters, key)} for {self.levels} layers")
        pairs = zip(context.shapes[: self.levels], context.shapes[self.levels :], strict=True)
        self.mappings = nn.ModuleList(
            Mapping(pair, latent, parameters.position)
            for pair, latent in zip(pairs, parameters.latents, strict=True)
        )
        self.network = self.mappings.to(context.device)
        self.optimizer = torch.optim.Adam(
            [
                {"params": mapping.parameters(), "lr": rate}
                for mapping, rate in zip(self.mappings, parameters.learning_rates, strict=True)
            ],
            weight_decay=parameters.weight_decay,
        )

    def _errors(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Of each level, the squared differences (N, C, h, w) of the first and the second map."""
        unit = [functional.normalize(layer, dim=1) for layer in batch]
        pairs = zip(unit[: self.levels], unit[self.levels :], strict=True)
        results = []
        for mapping, (first, second) in zip(self.mappings, pairs, strict=True):
            told_first, told_second = mapping(first, second)
            results.append(((first - told_first).square(), (second - told_second).square()))
        return results

    def loss(self, batch: Batch) -> Tensor:
        return torch.stack([one.mean() + other.mean() for one, other in self._errors(batch)]).sum()

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        maps = [
            upsample((one.sum(dim=1) + other.sum(dim=1)) / 2, self.context.image_size)
            for one, other in self._errors(batch)
        ]
        fused = fuse(torch.stack(maps), self.parameters.product)
        return Prediction({"error": fused}, {"maximum": fused.amax(dim=(1, 2))})
