"""AST: how far a plain student is from a teacher that is a normalising flow.

Rudolph, Wehrbein, Rosenhahn and Wandt, "Asymmetric Student-Teacher Networks for Industrial Anomaly
Detection", WACV 2023 (arXiv 2210.07829).

The teacher is a normalising flow: four affine coupling blocks map a feature map x, under the
condition of where on the grid a position lies (``blocks/positions.py``), to z ~ N(0, 1). It is
trained first, to maximise the likelihood of normal images, then frozen. The student is an ordinary
convolutional network that learns to reproduce z from the same inputs:

    teacher: mean_hw( 1/2 sum_c z^2 - log|det J| ),    student: mean_chw (z - z_student)^2.

A bijection has to send what is new to new places, and a network of another kind does not follow
there. The anomaly map is mean_c (z - z_student)^2, enlarged by bicubic interpolation, and the mean
over its grid is the image score.

A coupling block permutes the channels, halves them into a and b, and transforms both halves:
a <- a * exp(s(b)) + t(b), then b <- b * exp(s(a)) + t(a), with s = 0.636 v * atan(s' / v), v = 1.9.
Two convolutions give (s', t), times a learned factor that begins at 0: at first, a flow permutes.

Verified
--------
Blocks against FrEIA's ``GLOWCouplingBlock``; the flow's inverse, and its log-determinant against
autograd's Jacobian; losses, map and scores against NumPy; the teacher's 3.25 M and the student's
81.42 M parameters on EfficientNet-B5 against a count by hand; that the teacher rests while the
student learns.

Note
----
An epoch is one pass over the images: first ``teacher_epochs`` for the teacher, then all that are
left for the student. 72 + 72 are those of the authors' code, which is set up for MVTec 3D-AD. A
budget cuts off the student's training, without which maps say nothing.

This is the method for images without depth, where each position is foreground and the image score
is the mean (``maximum``, for those with depth, is kept, too). The authors drop a last batch that is
smaller. They extract features in evaluation mode beforehand; VisionAD's, for training, come from a
network in training mode, unlike those at test.

The method reads one layer: B5's sixth stage, 304 channels at stride 32 of a 768 px image. Given
several, each has its own teacher and student, and maps and scores are averaged. Features enter as
the network gives them: ``scale`` undoes that of a backbone which is scaled for other algorithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Batch, Context, GradientAlgorithm, Prediction, register
from algorithms.blocks.positions import position_encoding

OUTPUT_LIMIT = 1e6  # of each coupling block's outputs, so that squares stay finite


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code."""

    teacher_epochs: int = 72  # before the student's; the configuration's epochs are the sum
    kernel_sizes: tuple[int, ...] = (3, 3, 3, 5)  # of the teacher's subnets, one per coupling block
    teacher_channels: int = 64  # of a subnet's hidden layer
    student_channels: int = 1024
    student_blocks: int = 4
    condition_channels: int = 32  # of the position encoding, a multiple of 4
    clamp: float = 1.9  # v, bounds the log-scales
    scale: float = 1.0  # of the features; undoes that of a backbone
    learning_rate: float = 2e-4  # of both
    weight_decay: float = 1e-5


def conv(channels_in: int, channels_out: int, kernel: int, repeat: bool = False) -> nn.Conv2d:
    """Convolution that keeps the size of maps; ``repeat`` continues them, else by zeros."""
    mode: Literal["zeros", "replicate"] = "replicate" if repeat else "zeros"
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, padding_mode=mode)


class Subnet(nn.Module):
    """Convolution, ReLU, convolution, times one learned number."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.first = conv(channels_in, hidden, kernel, repeat=True)
        self.second = conv(hidden, channels_out, kernel, repeat=True)
        self.factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.second(functional.relu(self.first(x)))


class Coupling(nn.Module):
    """A permutation and a two-sided affine coupling of maps (N, C, h, w); see the module's text."""

    def __init__(self, channels: int, number: int, parameters: Hyperparameters) -> None:
        super().__init__()
        self.clamp, self.halves = parameters.clamp, (channels // 2, channels - channels // 2)
        one, other = self.halves
        condition, hidden = parameters.condition_channels, parameters.teacher_channels
        kernel = parameters.kernel_sizes[number]
        self.for_one = Subnet(other + condition, hidden, 2 * one, kernel)
        self.for_other = Subnet(one + condition, hidden, 2 * other, kernel)
        # The authors' permutations: always these, whatever the seed.
        order = np.random.RandomState(number).permutation(channels)
        self.register_buffer("order", torch.from_numpy(order))

    def _affine(self, subnet: Subnet, passive: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = subnet(torch.cat([passive, condition], dim=1)).chunk(2, dim=1)
        # 0.636 = 2 / pi, rounded: log-scales stay within the clamp.
        return self.clamp * 0.636 * torch.atan(scale / self.clamp), shift

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (N, C, h, w) and each position's share of log|det J| (N, h, w)."""
        a, b = x.index_select(1, self.get_buffer("order")).split(self.halves, dim=1)
        scale_a, shift = self._affine(self.for_one, b, condition)
        a = a * scale_a.exp() + shift
        scale_b, shift = self._affine(self.for_other, a, condition)
        b = b * scale_b.exp() + shift
        y = torch.cat([a, b], dim=1).clamp(-OUTPUT_LIMIT, OUTPUT_LIMIT)
        return y, scale_a.sum(dim=1) + scale_b.sum(dim=1)

    def inverse(self, y: Tensor, condition: Tensor) -> Tensor:
        """Undo :meth:`forward`."""
        a, b = y.split(self.halves, dim=1)
        scale, shift = self._affine(self.for_other, a, condition)
        b = (b - shift) * (-scale).exp()
        scale, shift = self._affine(self.for_one, b, condition)
        a = (a - shift) * (-scale).exp()
        return torch.cat([a, b], dim=1).index_select(1, self.get_buffer("order").argsort())


class Flow(nn.Module):
    """The teacher: coupling blocks in turn."""

    def __init__(self, channels: int, parameters: Hyperparameters) -> None:
        super().__init__()
        numbers = range(len(parameters.kernel_sizes))
        self.blocks = nn.ModuleList(Coupling(channels, number, parameters) for number in numbers)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (N, C, h, w) and each position's share of log|det J| (N, h, w)."""
        volumes = []
        for block in self.blocks:
            x, volume = block(x, condition)
            volumes.append(volume)
        return x, torch.stack(volumes).sum(dim=0)


class Residual(nn.Module):
    """Twice convolution, batch norm and leaky ReLU, then the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [conv(channels, channels, 3), nn.BatchNorm2d(channels), nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def build_student(channels: int, parameters: Hyperparameters) -> nn.Sequential:
    """Network from features and condition (N, C + condition, h, w) to z (N, C, h, w)."""
    width = parameters.student_channels
    return nn.Sequential(
        conv(channels + parameters.condition_channels, width, 3),
        nn.LeakyReLU(),
        *(Residual(width) for _ in range(parameters.student_blocks)),
        conv(width, channels, 3),
    )


def negative_log_likelihood(latent: Tensor, log_determinant: Tensor) -> Tensor:
    """Of each position (N, h, w), without its constant: 1/2 sum_c z^2 - log|det J|."""
    return 0.5 * latent.square().sum(dim=1) - log_determinant


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference (N, h, w) over the channels of maps (N, C, h, w)."""
    return (teacher - student).square().mean(dim=1)


@register("ast")
class AST(GradientAlgorithm):
    """A flow and a student per layer; see the module's text."""

    inputs = "features"
    primary = ("distance", "mean")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        channels = [shape[0] for shape in context.shapes]
        self.teachers = nn.ModuleList(Flow(count, parameters) for count in channels)
        self.students = nn.ModuleList(build_student(count, parameters) for count in channels)
        self.positions = [
            position_encoding(parameters.condition_channels, shape[1:]).to(context.device)
            for shape in context.shapes
        ]
        modules = {"teachers": self.teachers, "students": self.students}
        self.network = nn.ModuleDict(modules).to(context.device)
        # Adam passes over parameters without a gradient: in effect, both have their own.
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
        )

    def _inputs(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        return [
            (self.parameters.scale * layer, code.expand(len(layer), -1, -1, -1))
            for layer, code in zip(batch, self.positions, strict=True)
        ]

    def _latents(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        layers = zip(self.teachers, self._inputs(batch), strict=True)
        return [teacher(*inputs) for teacher, inputs in layers]

    def _distances(self, batch: Batch) -> list[Tensor]:
        """Of each layer, what lies between teacher and student at each position (N, h, w)."""
        with torch.no_grad():
            latents = self._latents(batch)
        layers = zip(self.students, self._inputs(batch), latents, strict=True)
        return [
            distance(latent, student(torch.cat([condition, features], dim=1)))
            for student, (features, condition), (latent, _) in layers
        ]

    def loss(self, batch: Batch) -> Tensor:
        if self.epoch < self.parameters.teacher_epochs:
            values = [negative_log_likelihood(*pair) for pair in self._latents(batch)]
        else:
            values = self._distances(batch)
        return torch.stack([value.mean() for value in values]).sum()

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        distances = self._distances(batch)
        large = [
            functional.interpolate(grid[:, None], self.context.image_size, mode="bicubic")[:, 0]
            for grid in distances
        ]
        scores = {
            "mean": torch.stack([grid.mean(dim=(1, 2)) for grid in distances]).mean(dim=0),
            "maximum": torch.stack([grid.amax(dim=(1, 2)) for grid in distances]).mean(dim=0),
        }
        return Prediction({"distance": torch.stack(large).mean(dim=0)}, scores)
