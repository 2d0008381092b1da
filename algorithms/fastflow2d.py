"""FastFlow: how likely is each position under a 2-D normalising flow.

Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows",
arXiv 2111.07677 (2021). No official code; the settings are those of the reference implementation
by gathierry, on which VisionAD builds.

Per layer, the features, layer-normalised, pass through affine coupling blocks
(``blocks/flows.py``) whose subnets are two convolutions, alternately 3 x 3 and 1 x 1. Training
maximises the likelihood of z ~ N(0, 1):

    loss = sum_layers mean_images( 1/2 sum_chw z^2 - log|det J| ).

At test, p = exp(-1/2 mean_c z^2) at every position; the anomaly map is -p, upsampled and averaged
over layers.

Verified
--------
Flows by inversion, their log-determinant against autograd's Jacobian, loss and maps against NumPy,
and the 1.97, 7.88 and 31.49 million parameters of WideResNet-50-2's three flows.

Note
----
The trainable layer norm before the flow is not in the paper, but the reference does not work
without it. The paper gives no image score; ``maximum`` of the map (anomalib's) and ``mean``
(VisionAD's) are both kept, and the leaderboard shows the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from FrEIA.framework import SequenceINN
from torch import Tensor, nn

from algorithms.base import Batch, Context, GradientAlgorithm, Prediction, register
from algorithms.blocks.flows import CouplingBlock
from algorithms.blocks.maps import upsample


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the reference implementation for ResNets."""

    flow_steps: int = 8
    hidden_ratio: float = 1.0  # width of a subnet's hidden layer over its input's
    conv3x3_only: bool = False  # the reference: true for ResNet-18
    clamp: float = 2.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5


def subnet(kernel_size: int, hidden_ratio: float) -> Callable[[int, int], nn.Module]:
    """Constructor of a coupling block's subnet: convolution, ReLU, convolution."""

    def build(channels_in: int, channels_out: int) -> nn.Module:
        hidden = max(1, int(channels_in * hidden_ratio))
        return nn.Sequential(
            nn.Conv2d(channels_in, hidden, kernel_size, padding="same"),
            nn.ReLU(),
            nn.Conv2d(hidden, channels_out, kernel_size, padding="same"),
        )

    return build


def build_flow(shape: tuple[int, int, int], parameters: Hyperparameters) -> SequenceINN:
    """Chain of coupling blocks over a feature map (C, H, W)."""
    flow = SequenceINN(*shape)
    for step in range(parameters.flow_steps):
        wide = parameters.conv3x3_only or step % 2 == 0
        flow.append(
            CouplingBlock,
            subnet_constructor=subnet(3 if wide else 1, parameters.hidden_ratio),
            affine_clamping=parameters.clamp,
        )
    return flow


def negative_log_likelihood(latent: Tensor, log_determinant: Tensor) -> Tensor:
    """Mean over images of 1/2 sum z^2 - log|det J|, the constant left out."""
    return (0.5 * latent.square().sum(dim=(1, 2, 3)) - log_determinant).mean()


def probability(latent: Tensor) -> Tensor:
    """Likelihood (N, h, w) of each position of z (N, C, h, w), up to a power and a constant."""
    return torch.exp(-0.5 * latent.square().mean(dim=1))


@register("fastflow2d")
class FastFlow(GradientAlgorithm):
    """One flow per layer; see the module's text."""

    inputs = "features"
    primary = ("probability", "maximum")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        # The blocks draw their permutations from NumPy's generator, which the trainer seeds.
        self.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in context.shapes)
        self.flows = nn.ModuleList(build_flow(shape, parameters) for shape in context.shapes)
        self.network = nn.ModuleDict({"norms": self.norms, "flows": self.flows}).to(context.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
        )

    def _latents(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        return [
            flow(norm(layer))
            for layer, norm, flow in zip(batch, self.norms, self.flows, strict=True)
        ]

    def loss(self, batch: Batch) -> Tensor:
        return torch.stack([negative_log_likelihood(*pair) for pair in self._latents(batch)]).sum()

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        size = self.context.image_size
        maps = torch.stack(
            [-upsample(probability(latent), size) for latent, _ in self._latents(batch)]
        ).mean(dim=0)
        scores: Mapping[str, Tensor] = {
            "maximum": maps.amax(dim=(1, 2)),
            "mean": maps.mean(dim=(1, 2)),
        }
        return Prediction({"probability": maps}, scores)
