"""AltUB: a normalising flow towards a normal distribution that is learned, too.

Kim, Jang, Lee and Choi, "AltUB: Alternating Training Method to Update Base Distribution of
Normalizing Flow for Anomaly Detection", 2022 (arXiv 2210.14913); here around FastFlow
(``algorithms/fastflow2d.py``), whose features, flows and layer norms are unchanged. No official
code; the settings are those of VisionAD, the only code known.

A flow trained towards N(0, 1) ends at some other normal distribution. So the base is
N(mu, exp(l)), with a mean and a log-variance per layer and channel, and the loss

    loss = sum_layers mean_images( 1/2 sum_chw ( exp(-l) (z - mu)^2 + l ) - log|det J| ).

Flow and base learn together, the base slowly; but for every fifth epoch, in which the flow is
frozen and the base alone learns fifty times as fast. At test the map stays in the log-domain,

    map = mean_layers upsample( 1/2 mean_c exp(-l) (z - mu)^2 ).

Verified
--------
The loss against SciPy's normal density, and against FastFlow's where the base is N(0, 1); the map
against a NumPy version; the base, learning alone, ends at the latents' means and variances.

Note
----
VisionAD counts batches, anew in each epoch, and freezes the flow in the first and then in every
fifth (``interval_unit: batch``), so that it never learns from 32 images or fewer. The paper, as far
as known, counts epochs, and so does the default: the flow has four fifths of them whatever the
number of images.

Not known from the paper, from VisionAD: the base's own optimiser in either phase, and a weight
decay of the flow of 1e-3, where FastFlow has 1e-5. Left out of the map is the mean of l / 2, one
constant per layer. The image score is the map's ``maximum``, as for FastFlow; VisionAD has the
``mean``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from algorithms import fastflow2d
from algorithms.base import (
    Batch,
    Context,
    Loader,
    Prediction,
    load_optimizer_moments,
    optimizer_moments,
    register,
)
from algorithms.blocks.maps import upsample
from algorithms.fastflow2d import FastFlow


@dataclass(frozen=True)
class Hyperparameters(fastflow2d.Hyperparameters):
    """FastFlow's, then the base's, with the values of VisionAD."""

    flow_steps: int = 8
    hidden_ratio: float = 1.0
    conv3x3_only: bool = False
    clamp: float = 2.0
    learning_rate: float = 1e-3  # of the flow
    weight_decay: float = 1e-3  # of the flow; the base has none
    interval: int = 5  # in every fifth epoch, or batch, the base learns alone
    interval_unit: Literal["epoch", "batch"] = "epoch"  # what is counted
    joint_rate: float = 1e-3  # learning rate of the base while the flow learns, too
    alone_rate: float = 0.05  # and while it is frozen
    clip_norm: float = 100.0  # of the gradients of flow and base, each
    per_channel: bool = True  # false: one mean and variance per layer
    learn_variance: bool = True  # false: it stays 1


class Base(nn.Module):
    """N(mean, exp(log_variance)), independent over channels and positions."""

    log_variance: Tensor

    def __init__(self, channels: int, learn_variance: bool) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels, 1, 1))
        zeros = torch.zeros(channels, 1, 1)
        if learn_variance:
            self.log_variance = nn.Parameter(zeros)
        else:
            self.register_buffer("log_variance", zeros)

    def forward(self, latent: Tensor) -> Tensor:
        """Squares of the standardised z, (N, C, h, w)."""
        return (latent - self.mean).square() * torch.exp(-self.log_variance)


def negative_log_likelihood(latent: Tensor, log_determinant: Tensor, base: Base) -> Tensor:
    """Mean over images of -log N(z; base) - log|det J|, the constant of 2 pi left out.

    ``latent`` is (N, C, h, w), ``log_determinant`` (N,).
    """
    log_variances = latent[0].numel() * base.log_variance.mean()  # sum_chw l
    energy = 0.5 * (base(latent).sum(dim=(1, 2, 3)) + log_variances)
    return (energy - log_determinant).mean()


@register("altub")
class AltUB(FastFlow):
    """FastFlow with a learned base; see the module's text."""

    inputs = "features"
    primary = ("log_probability", "maximum")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        flow = list(self.network.parameters())
        channels = [shape[0] if parameters.per_channel else 1 for shape in context.shapes]
        self.bases = [Base(count, parameters.learn_variance) for count in channels]
        self.network = nn.ModuleDict(
            {"norms": self.norms, "flows": self.flows, "bases": nn.ModuleList(self.bases)}
        ).to(context.device)
        base = [parameter for part in self.bases for parameter in part.parameters()]
        self.parts = flow, base
        self.optimizer = torch.optim.Adam(
            [
                {"params": flow, "weight_decay": parameters.weight_decay},
                {"params": base, "lr": parameters.joint_rate},
            ],
            lr=parameters.learning_rate,
        )
        self.alone = torch.optim.Adam(base, lr=parameters.alone_rate)  # with moments of its own

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        self.network.train()
        by_epoch = self.parameters.interval_unit == "epoch"
        total, images = 0.0, 0
        for number, batch in enumerate(loader):
            count = self.epoch + 1 if by_epoch else number
            loss = self._step(batch, frozen=count % self.parameters.interval == 0)
            total += loss * len(batch[0])
            images += len(batch[0])
        self.epoch += 1
        return {"loss": total / images}

    def _step(self, batch: Batch, frozen: bool) -> float:
        """Let flow and base, or with a ``frozen`` flow the base alone, learn from one batch."""
        with torch.set_grad_enabled(not frozen):
            latents = self._latents(batch)
        loss = self._loss(latents)
        self.network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for part in self.parts:
            nn.utils.clip_grad_norm_(part, self.parameters.clip_norm)
        (self.alone if frozen else self.optimizer).step()
        return loss.item()

    def _loss(self, latents: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack(
            [
                negative_log_likelihood(latent, log_determinant, base)
                for (latent, log_determinant), base in zip(latents, self.bases, strict=True)
            ]
        ).sum()

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(self._latents(batch))

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        energies = [
            0.5 * base(latent).mean(dim=1)
            for (latent, _), base in zip(self._latents(batch), self.bases, strict=True)
        ]
        maps = torch.stack([upsample(energy, self.context.image_size) for energy in energies])
        maps = maps.mean(dim=0)
        scores: Mapping[str, Tensor] = {
            "maximum": maps.amax(dim=(1, 2)),
            "mean": maps.mean(dim=(1, 2)),
        }
        return Prediction({"log_probability": maps}, scores)

    def training_state(self) -> dict[str, Tensor]:
        alone = {f"alone.{key}": value for key, value in optimizer_moments(self.alone).items()}
        return super().training_state() | alone

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        joint = dict(state)
        names = [key for key in state if key.startswith("alone.")]
        load_optimizer_moments(self.alone, {key[len("alone.") :]: joint.pop(key) for key in names})
        super().load_training_state(joint)
