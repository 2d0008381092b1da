"""SimpleNet: a discriminator between normal features and the same with noise.

Liu et al., "SimpleNet: A Simple Network for Image Anomaly Detection and Localization", CVPR 2023
(arXiv 2303.15140).

Every position of the feature maps is described as PatchCore does (``blocks/patches.py``). A linear
layer, the projection, adapts these patches to the category: q. Gaussian noise makes anomalous ones,
q~ = q + e with e ~ N(0, sigma^2), and a discriminator D of one hidden layer learns to tell them
apart, together with the projection:

    loss = mean max(0, t - D(q)) + mean max(0, t + D(q~)),   t = 0.5.

At test there is no noise. A patch scores -D(q), an image its largest patch score; the patch scores,
upsampled and smoothed, are the map.

Verified
--------
* Loss, score and the rate of the cosine schedule against NumPy versions.
* A training step equals one of two separate optimisers, AdamW and Adam, to the last bit.
* With 1536 dimensions the projection has 2.36 M parameters and the discriminator 1.58 M.

Note
----
* The authors keep the epoch whose *test* AUROC is the best, out of 40 evaluations; here training
  ends with its last epoch. Their 40 x 4 passes over the images are 160 epochs.
* Networks return to training mode after every evaluation. VisionAD's stay in evaluation mode after
  the first one, train with batches of one image, 40 passes and the cosine schedule.
* Batch norm sees normal and noisy patches together, as in the authors' code, so its running
  statistics, by which test patches are normalised, are those of the mixture.
* The noise has the unit of the features, for which ResNets' stand.
* Their code can draw each patch's noise from several levels; the paper and their runs use one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Batch, Context, GradientAlgorithm, Loader, Prediction, register
from algorithms.blocks.maps import gaussian_smooth, upsample
from algorithms.blocks.patches import embed, embedding_kernels


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' runs (WideResNet-50-2)."""

    patch_size: int = 3
    pretrain_dimension: int | None = 1536  # bins per layer; null: one per channel
    target_dimension: int | None = 1536  # of the embedding; null: all bins
    hidden_dimension: int = 1024  # of the discriminator
    noise: float = 0.015  # standard deviation of e in each dimension
    threshold: float = 0.5  # t
    projection_rate: float = 1e-4
    projection_decay: float = 0.01  # decoupled, AdamW's
    discriminator_rate: float = 2e-4
    discriminator_decay: float = 1e-5  # part of the gradient, Adam's
    cosine_epochs: int = (
        0  # half period of the discriminator's rate; 0: constant; authors' option 156
    )
    cosine_floor: float = 0.4  # lowest rate over the first
    sigma: float = 4.0  # of the Gaussian smoothing, in pixels of the map


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Fully connected layer with Glorot's normal weights."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_normal_(layer.weight)
    return layer


def build_discriminator(width: int, hidden: int) -> nn.Sequential:
    """D: patches (P, width) -> (P, 1), higher is more normal."""
    return nn.Sequential(
        linear(width, hidden),
        nn.BatchNorm1d(hidden),
        nn.LeakyReLU(0.2),
        linear(hidden, 1, bias=False),
    )


def truncated_loss(normal: Tensor, noisy: Tensor, threshold: float) -> Tensor:
    """Mean max(0, t - D(q)) + mean max(0, t + D(q~))."""
    return functional.relu(threshold - normal).mean() + functional.relu(threshold + noisy).mean()


def cosine_factor(epoch: int, period: int, floor: float) -> float:
    """The rate in ``epoch``, over that of the first: falls from 1 to ``floor`` at ``period``."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * epoch / period)) / 2


@register("simplenet")
class SimpleNet(GradientAlgorithm):
    """A projection and a discriminator on patch embeddings; see the module's text."""

    inputs = "features"
    prediction_parameters = ("sigma",)
    primary = ("discriminator", "discriminator")
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
        bins = [parameters.pretrain_dimension or shape[0] for shape in context.shapes]
        width = parameters.target_dimension or sum(bins)
        self.projection = linear(width, width)
        self.discriminator = build_discriminator(width, parameters.hidden_dimension)
        self.network = nn.Sequential(self.projection, self.discriminator).to(context.device)
        # One Adam for both: each group of parameters has its rate, decay and kind of decay.
        self.optimizer = torch.optim.Adam(
            [
                {
                    "params": self.projection.parameters(),
                    "lr": parameters.projection_rate,
                    "weight_decay": parameters.projection_decay,
                    "decoupled_weight_decay": True,
                },
                {
                    "params": self.discriminator.parameters(),
                    "lr": parameters.discriminator_rate,
                    "weight_decay": parameters.discriminator_decay,
                },
            ],
            decoupled_weight_decay=False,
        )

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        if period := self.parameters.cosine_epochs:
            factor = cosine_factor(self.epoch, period, self.parameters.cosine_floor)
            self.optimizer.param_groups[1]["lr"] = factor * self.parameters.discriminator_rate
        return super().train_one_epoch(loader)

    def loss(self, batch: Batch) -> Tensor:
        normal = self.projection(self._patches(batch))
        noisy = normal + self.parameters.noise * torch.randn_like(normal)
        # In one pass, so that batch norm cannot tell them apart by their statistics.
        logits = self.discriminator(torch.cat([normal, noisy]))
        return truncated_loss(
            logits[: len(normal)], logits[len(normal) :], self.parameters.threshold
        )

    def _patches(self, batch: Batch) -> Tensor:
        return embed(batch, self.kernels).flatten(0, 1)

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        logits = self.network(self._patches(batch))
        patch_scores = -logits.unflatten(0, (len(batch[0]), *self.grid))[..., 0]
        maps = upsample(patch_scores, self.context.image_size)
        return Prediction(
            {"discriminator": gaussian_smooth(maps, self.parameters.sigma)},
            {"discriminator": patch_scores.amax(dim=(1, 2))},
        )
