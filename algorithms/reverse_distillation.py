"""Reverse distillation: a decoder that can only redraw normal features.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022
(arXiv 2201.10703).

A frozen teacher gives features at strides 4, 8 and 16. A bottleneck fuses them (MFF) and squeezes
them into one small map (OCE), from which a student decoder, a ResNet turned around, redraws the
teacher's three maps. Trained on normal images only, it fails where something is new:

    map = sum_layers upsample( 1 - cos(teacher, student) at each position ),  smoothed,

and its maximum is the image score. The training loss is the sum over layers of 1 - cos of the
*whole flattened* maps, one cosine per image, as in the authors' code; the paper's formula has one
per position.

Verified
--------
Losses and maps against NumPy, shapes and parameter counts of the WideResNet-50-2 student, batch
statistics used in training only.

Note
----
Widths follow the teacher's channels (C1, C2, C3): with WideResNet-50-2 they are the authors'. A
teacher whose maps are signed (EfficientNet) needs a student without the last ReLU of each map. The
teacher is frozen and images are not augmented, so its features come from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Batch, Context, GradientAlgorithm, Prediction, register
from algorithms.blocks.maps import gaussian_smooth, upsample


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code."""

    learning_rate: float = 0.005
    beta1: float = 0.5
    beta2: float = 0.999
    bottleneck_blocks: int = 3
    decoder_blocks: tuple[int, ...] = (3, 4, 6)  # read in the direction of decoding
    output_relu: bool = True  # the teacher's maps end in a ReLU (ResNets); false: they are signed
    sigma: float = 4.0


def conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch norm."""
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(channels_out))


def conv_up(channels_in: int, channels_out: int) -> nn.Sequential:
    """Transposed 2 x 2 convolution of stride 2 (PyTorch's own initialisation), then batch norm."""
    layer = nn.ConvTranspose2d(channels_in, channels_out, 2, 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels_out))


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3, 1x1 that may halve (``down``) or double (``up``) the resolution."""

    def __init__(
        self, channels_in: int, channels_out: int, resample: str = "keep", relu: bool = True
    ) -> None:
        super().__init__()
        width = channels_out // 2
        middle = {
            "keep": lambda: conv(width, width, 3),
            "down": lambda: conv(width, width, 3, stride=2),
            "up": lambda: conv_up(width, width),
        }[resample]()
        shortcut = {
            "keep": lambda: conv(channels_in, channels_out, 1),
            "down": lambda: conv(channels_in, channels_out, 1, stride=2),
            "up": lambda: conv_up(channels_in, channels_out),
        }[resample]
        self.residual = nn.Sequential(
            conv(channels_in, width, 1), nn.ReLU(), middle, nn.ReLU(), conv(width, channels_out, 1)
        )
        identical = resample == "keep" and channels_in == channels_out
        self.shortcut = nn.Identity() if identical else shortcut()
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.residual(x) + self.shortcut(x))


def stage(
    channels_in: int, channels_out: int, blocks: int, resample: str, relu: bool = True
) -> nn.Sequential:
    """A resampling block followed by ``blocks - 1`` plain ones; ``relu``: after the last one."""
    layers = []
    for number in range(blocks):
        width, how = (channels_out, "keep") if number else (channels_in, resample)
        layers.append(Bottleneck(width, channels_out, how, relu or number < blocks - 1))
    return nn.Sequential(*layers)


class OneClassEmbedding(nn.Module):
    """MFF: bring the finer maps to the coarsest grid and stack; OCE: squeeze to half of it."""

    def __init__(self, channels: tuple[int, int, int], blocks: int) -> None:
        super().__init__()
        c1, c2, c3 = channels
        self.fine = nn.Sequential(conv(c1, c2, 3, 2), nn.ReLU(), conv(c2, c3, 3, 2), nn.ReLU())
        self.middle = nn.Sequential(conv(c2, c3, 3, 2), nn.ReLU())
        self.squeeze = stage(3 * c3, 2 * c3, blocks, "down")

    def forward(self, features: Batch) -> Tensor:
        fine, middle, coarse = features
        return self.squeeze(torch.cat([self.fine(fine), self.middle(middle), coarse], dim=1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The student: redraws the teacher's maps from the embedding, coarsest first."""

    def __init__(
        self, channels: tuple[int, int, int], blocks: tuple[int, ...], relu: bool = True
    ) -> None:
        super().__init__()
        c1, c2, c3 = channels
        self.coarse = stage(2 * c3, c3, blocks[0], "up", relu)
        self.middle = stage(c3, c2, blocks[1], "up", relu)
        self.fine = stage(c2, c1, blocks[2], "up", relu)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        coarse = self.coarse(embedding)
        middle = self.middle(functional.relu(coarse))
        return [self.fine(functional.relu(middle)), middle, coarse]


def flat_cosine_loss(teacher: Batch, student: Batch) -> Tensor:
    """Sum over layers of the mean over images of 1 - cos(teacher, student), maps flattened."""
    return torch.stack(
        [
            (1 - functional.cosine_similarity(left.flatten(1), right.flatten(1))).mean()
            for left, right in zip(teacher, student, strict=True)
        ]
    ).sum()


def disagreement(teacher: Batch, student: Batch, size: tuple[int, int]) -> Tensor:
    """Sum over layers of 1 - cos over channels, upsampled to maps (N, H, W)."""
    return torch.stack(
        [
            upsample(1 - functional.cosine_similarity(left, right, dim=1), size, align_corners=True)
            for left, right in zip(teacher, student, strict=True)
        ]
    ).sum(dim=0)


@register("reverse_distillation")
class ReverseDistillation(GradientAlgorithm):
    """Bottleneck and student decoder on cached teacher features; see the module's text."""

    inputs = "features"
    prediction_parameters = ("sigma",)
    primary = ("cosine", "cosine")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        if len(context.shapes) != 3:
            raise ValueError("reverse distillation wants three layers: strides 4, 8 and 16")
        c1, c2, c3 = (shape[0] for shape in context.shapes)
        self.embedding = OneClassEmbedding((c1, c2, c3), parameters.bottleneck_blocks)
        self.decoder = Decoder(
            (c1, c2, c3), tuple(parameters.decoder_blocks), parameters.output_relu
        )
        self.network = nn.Sequential(self.embedding, self.decoder).to(context.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=parameters.learning_rate,
            betas=(parameters.beta1, parameters.beta2),
        )

    def loss(self, batch: Batch) -> Tensor:
        return flat_cosine_loss(batch, self.network(batch))

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        maps = disagreement(batch, self.network(batch), self.context.image_size)
        maps = gaussian_smooth(maps, self.parameters.sigma)
        return Prediction({"cosine": maps}, {"cosine": maps.amax(dim=(1, 2))})
