"""CDO: an apprentice that agrees with an expert on normal images and not on patches of noise.

Cao, Xu, Liu and Shen, "Collaborative Discrepancy Optimization for Reliable Image Anomaly
Localization", IEEE Transactions on Industrial Informatics 2023 (arXiv 2302.08769).

A frozen expert and an apprentice of the same architecture, trained from random weights, see normal
images into which patches of noise were put. Their features, brought to the finest layer's grid and
to unit length, differ at position p of layer k by

    d_k(p) = | E_k(p) - A_k(p) |^2  =  2 - 2 cos(E_k(p), A_k(p)).

The apprentice shall make d small where the image is normal (n) and large where it is noise (s),
and look at the difficult positions most:

    loss = sum_k  B (sum_n w d - sum_s w d) / (sum_n w + sum_s w),
    w = (d / mean_n d)^gamma on normal positions,   w = (mean_s d / d)^gamma on noise,

over a batch of B images. The anomaly map is the sum of d_k, upsampled and smoothed; its maximum is
the image score.

Verified
--------
Differences, loss, map and scores against NumPy, the background against SciPy's filters, patches
against the limits of the fact sheet, and that the apprentice starts from weights of its own.

Note
----
* This is the code of the paper, of 2023. Its rewrite of 2025 trains with Adam at 0.001, a step
  schedule and flatter noise, and scores by the mean of the top 1% of the map (``top`` here).
* Patches stay off the background, dark or bright, in seven categories of MVTec AD that the authors
  list, and go everywhere in the others. Here they always stay off it, which changes little where
  there is none, as in textures. A patch that finds no place is left out; the authors' code uses
  the previous one's or fails.
* w of noise is bounded where d is 0. With ``gamma: 0`` or ``max_patches: 0`` it is the paper's
  method without its two parts.
* timm's HRNet upsamples by the nearest neighbour inside, as it was pretrained; the authors'
  bilinearly. The rate's factor of 0.95 counts epochs of the data set.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

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
from algorithms.blocks.maps import gaussian_smooth, upsample
from algorithms.blocks.synthetic import background, noise_patches

SMALLEST = 1e-6  # distances are not taken for smaller when divided by


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the paper's code."""

    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    decay: float = 0.95  # of the rate, in each epoch
    gamma: float = 2.0  # how much difficult positions count more; 0: all the same
    max_patches: int = 4  # of noise in an image, from none to so many; 0: always none
    half_sides: tuple[int, int] = (40, 10)  # an image's side over a patch's half, least and most
    skip_background: bool = True  # patches have their centres on the object
    dark: float = 30.0  # of 255: below is background
    bright: float = 220.0  # of 255: above is background
    sigma: float = 4.0  # of the Gaussian smoothing, in pixels of the map
    top_fraction: float = 0.01  # of the map's pixels, for the score "top"


def fresh_copy(network: nn.Module) -> nn.Module:
    """The same architecture, trainable, with new random weights: Kaiming's for convolutions."""
    copy = deepcopy(network).requires_grad_(True)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(f"CDO: cannot draw new weights for a {type(module).__name__}")
    return copy


def differences(expert: Batch, apprentice: Batch) -> list[Tensor]:
    """d_k (N, h, w), all on the grid of the first layer."""
    size = expert[0].shape[-2:]

    def directions(features: Tensor) -> Tensor:
        features = functional.interpolate(features, size, mode="bilinear", align_corners=True)
        return functional.normalize(features, dim=1)

    return [
        (directions(left) - directions(right)).square().sum(dim=1)
        for left, right in zip(expert, apprentice, strict=True)
    ]


def collaborative_loss(distances: Tensor, noisy: Tensor, gamma: float) -> Tensor:
    """Weighted mean of one layer's distances (B, h, w), of noise negative, times B."""
    with torch.no_grad():
        bounded = distances.clamp(min=SMALLEST)
        normal_mean, noisy_mean = bounded[~noisy].mean(), bounded[noisy].mean()
        ratios = torch.where(noisy, noisy_mean / bounded, bounded / normal_mean)
        weights = ratios**gamma
        signs = torch.where(noisy, -1.0, 1.0)
    return len(distances) * (signs * weights * distances).sum() / weights.sum()


@register("cdo")
class Cdo(GradientAlgorithm):
    """A frozen backbone and its untaught twin; see the module's text."""

    inputs = "images"
    builds_on_backbone = True
    prediction_parameters = ("sigma", "top_fraction")
    primary = ("discrepancy", "maximum")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        assert context.backbone is not None
        self.expert = context.backbone()  # not part of the state: the context makes it again
        self.network = fresh_copy(self.expert).to(context.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
        )

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        rate = self.parameters.learning_rate * self.parameters.decay**self.epoch
        set_rate(self.optimizer, rate)
        return super().train_one_epoch(loader)

    def loss(self, batch: Batch) -> Tensor:
        images, masks = self._with_noise(batch[0])
        layers = self._differences(images)
        small = functional.interpolate(masks[:, None].float(), layers[0].shape[1:])[:, 0] > 0
        gamma = self.parameters.gamma
        return torch.stack([collaborative_loss(layer, small, gamma) for layer in layers]).sum()

    def _with_noise(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images with patches of noise, uniform in [0, 1), and where they are (N, H, W)."""
        values, drawn = self.parameters, []
        for image in self.context.pixels(images):
            skip = None
            if values.skip_background:
                skip = background(image, values.dark / 255, values.bright / 255)
            drawn.append(noise_patches(image, values.max_patches, values.half_sides, skip))
        noisy, masks = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        return torch.where(masks[:, None], self.context.normalised(noisy), images), masks

    def _differences(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            expert = self.expert(images)
        return differences(expert, self.network(images))

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        layers = [upsample(one, self.context.image_size) for one in self._differences(batch[0])]
        maps = gaussian_smooth(torch.stack(layers).sum(dim=0), self.parameters.sigma)
        pixels = maps.flatten(1)
        count = max(1, int(pixels.shape[1] * self.parameters.top_fraction))
        top = pixels.topk(count, dim=1).values.mean(dim=1)
        return Prediction({"discrepancy": maps}, {"maximum": maps.amax(dim=(1, 2)), "top": top})
