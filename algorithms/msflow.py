"""MSFlow: one flow per scale, then one flow that lets the scales exchange what they know.

Zhou et al., "MSFlow: Multi-Scale Flow-based Framework for Unsupervised Anomaly Detection", IEEE
TNNLS 2024 (arXiv 2308.15300).

Each layer's map, halved in resolution by average pooling, passes through its own affine coupling
blocks, few on the fine scales and many on the coarse; where on the grid a position lies is a
condition. A fusion flow then couples all scales at once: half of every scale's channels is scaled
and shifted by numbers computed from the other halves of all scales, and then the reverse. Training
maximises the likelihood of z ~ N(0, 1):

    loss = mean_images( 1/2 sum_scales sum_chw z^2 - log|det J| ).

At test, l_i = -1/2 mean_c z_i^2 at each position of scale i; U enlarges to the image. Maxima are
over the positions of one image, which is thus judged against its own most normal place:

    additive       = max(P) - P,       P = sum_i U( exp(l_i - max(l_i)) ),
    multiplicative = 1 - exp(S - max(S)),   S = sum_i U(l_i).

The first is the map; the image score is the mean of the largest 3 % of the second.

Verified
--------
The fusion flow's inverse and log-determinant (autograd), odd channel counts included; those of a
conditioned flow; F against a version written with ``torch.nn.functional``; the schedule against
torch's schedulers; maps and scores against NumPy; parameters with WideResNet-50-2 against a count
of the authors' model: 1.55 + 11.99 + 66.39 M in the parallel flows, 19.62 M in the fusion flow.

Note
----
The authors resize to 512 x 512 with a Lanczos filter and report the best epoch on the test set;
here the benchmark's image size and the last epoch count. They use the additive map for the pixel
AUROC, the multiplicative one for PRO and the image score. 1 - exp(-x) is 1 in float32 from x = 17
on, so strong anomalies tie: exp(-x) is averaged in float64, and x itself is the map
``log_multiplicative``, minus the logarithm of its mean exp(-x) the score of that name. They order
pixels of one image, and images, as the multiplicative ones do, without ties. VisionAD's wrapper
warms up for 300 of 100 epochs, from 0.3, and averages the largest 10 %. Features enter the flows as
they are: the learning rate suits maps about as large as a ResNet's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from FrEIA.framework import SequenceINN
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
from algorithms.blocks.flows import CouplingBlock
from algorithms.blocks.fusion_flow import FusionFlow, subnet
from algorithms.blocks.maps import upsample
from algorithms.blocks.positions import position_encoding


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code."""

    blocks: tuple[int, ...] = (2, 5, 8)  # coupling blocks of each layer's flow, finest first
    clamp: float = 1.9  # bounds the log-scales of all coupling blocks
    condition_channels: int = 64  # of the position encoding, a multiple of 4
    learning_rate: float = 1e-4
    gradient_norm: float = 2.0  # longer gradients, of all parameters together, are shortened
    warmup_epochs: int = 12  # the learning rate grows linearly
    warmup_start: float = 0.1  # from this share of it
    milestones: tuple[int, ...] = (70, 90)  # epochs done when it is multiplied
    decay: float = 0.33  # by this
    top_fraction: float = 0.03  # of the pixels, averaged to the image score


def parallel_flow(
    shape: tuple[int, int, int], blocks: int, condition_channels: int, clamp: float
) -> SequenceINN:
    """Chain of coupling blocks over one scale (C, H, W), conditioned on position."""
    flow = SequenceINN(*shape)
    for _ in range(blocks):
        flow.append(
            CouplingBlock,
            cond=0,
            cond_shape=(condition_channels, *shape[1:]),
            subnet_constructor=lambda c_in, c_out: subnet(c_in, c_in, c_out),
            affine_clamping=clamp,
        )
    return flow


def learning_rate(epoch: int, parameters: Hyperparameters) -> float:
    """Learning rate of an epoch, counted from 0: linear warm-up, then steps down."""
    done = min(1.0, epoch / parameters.warmup_epochs) if parameters.warmup_epochs else 1.0
    warm = parameters.warmup_start + (1 - parameters.warmup_start) * done
    steps = sum(epoch >= milestone for milestone in parameters.milestones)
    return parameters.learning_rate * warm * parameters.decay**steps


def negative_log_likelihood(latents: Batch, log_determinant: Tensor) -> Tensor:
    """Mean over images of 1/2 sum z^2 - log|det J|, z of all scales, the constant left out."""
    squares = torch.stack([latent.square().sum(dim=(1, 2, 3)) for latent in latents])
    return (0.5 * squares.sum(dim=0) - log_determinant).mean()


def log_likelihood(latent: Tensor) -> Tensor:
    """-1/2 mean_c z^2 of z (N, C, h, w): (N, h, w)."""
    return -0.5 * latent.square().mean(dim=1)


def additive_map(likelihoods: Batch, size: tuple[int, int]) -> Tensor:
    """Likelihoods relative to each image's best place, summed over scales, the sign turned."""
    relative = [torch.exp(part - part.amax(dim=(1, 2), keepdim=True)) for part in likelihoods]
    total = torch.stack([upsample(part, size, align_corners=True) for part in relative]).sum(dim=0)
    return total.amax(dim=(1, 2), keepdim=True) - total


def distance_to_best(likelihoods: Batch, size: tuple[int, int]) -> Tensor:
    """By how much the log-likelihood, summed over scales, falls short of the image's best place."""
    parts = [upsample(part, size, align_corners=True) for part in likelihoods]
    total = torch.stack(parts).sum(dim=0)
    return total.amax(dim=(1, 2), keepdim=True) - total


def image_scores(distances: Tensor, top_fraction: float) -> dict[str, Tensor]:
    """Mean of 1 - exp(-x) over the largest x of each image (N, H, W), and its -log(1 - score)."""
    count = max(1, int(top_fraction * distances[0].numel()))
    top = distances.flatten(1).topk(count, dim=1).values.double()
    return {
        "multiplicative": -torch.expm1(-top).mean(dim=1),
        "log_multiplicative": math.log(count) - torch.logsumexp(-top, dim=1),
    }


@register("msflow")
class MSFlow(GradientAlgorithm):
    """Parallel flows and a fusion flow; see the module's text."""

    inputs = "features"
    primary = ("additive", "multiplicative")
    prediction_parameters = ("top_fraction",)
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        if len(parameters.blocks) != len(context.shapes):
            raise ValueError(f"blocks {parameters.blocks} for {len(context.shapes)} layers")
        # Average pooling of stride 2 rounds a grid's sides up.
        shapes = [(c, (h + 1) // 2, (w + 1) // 2) for c, h, w in context.shapes]
        codes, clamp = parameters.condition_channels, parameters.clamp
        self.positions = [position_encoding(codes, s[1:]).to(context.device) for s in shapes]
        # NumPy's generator, which the trainer seeds, draws all channel permutations.
        self.flows = nn.ModuleList(
            parallel_flow(shape, count, codes, clamp)
            for shape, count in zip(shapes, parameters.blocks, strict=True)
        )
        self.fusion = FusionFlow([shape[0] for shape in shapes], clamp)
        modules = {"flows": self.flows, "fusion": self.fusion}
        self.network = nn.ModuleDict(modules).to(context.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=parameters.learning_rate)
        self.optimizer.register_step_pre_hook(self._shorten_gradient)

    def _shorten_gradient(self, *_: Any) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self.parameters.gradient_norm)

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        set_rate(self.optimizer, learning_rate(self.epoch, self.parameters))
        return super().train_one_epoch(loader)

    def _latents(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        outputs, log_determinants = [], []
        for layer, flow, code in zip(batch, self.flows, self.positions, strict=True):
            pooled = functional.avg_pool2d(layer, 3, stride=2, padding=1)
            output, log_determinant = flow(pooled, [code.expand(len(layer), -1, -1, -1)])
            outputs.append(output)
            log_determinants.append(log_determinant)
        latents, fused = self.fusion(outputs)
        return latents, torch.stack(log_determinants).sum(dim=0) + fused

    def loss(self, batch: Batch) -> Tensor:
        return negative_log_likelihood(*self._latents(batch))

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        likelihoods = [log_likelihood(latent) for latent in self._latents(batch)[0]]
        size = self.context.image_size
        distances = distance_to_best(likelihoods, size)
        maps = {
            "additive": additive_map(likelihoods, size),
            "multiplicative": -torch.expm1(-distances),
            "log_multiplicative": distances,
        }
        return Prediction(maps, image_scores(distances, self.parameters.top_fraction))
