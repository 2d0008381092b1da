"""Networks that segment synthetic anomalies (DRAEM, DSR): their parts, loss and score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

SMOOTH = 1e-5
Norm = Callable[[int], nn.Module]


def convolutions(widths: Sequence[int], norm: Norm = nn.InstanceNorm2d) -> nn.Sequential:
    """3 x 3 convolutions through so many channels, each followed by a norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), norm(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def enlarged(widths: Sequence[int], norm: Norm = nn.InstanceNorm2d) -> nn.Sequential:
    """The same, on maps of twice the side."""
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(up, *convolutions(widths, norm))


class UNet(nn.Module):
    """From (N, C, H, W) to logits (N, 2, H, W) over levels of half the side each.

    Parameters
    ----------
    channels
        C.
    widths
        Of the encoder's levels, finest first.
    decoder
        Of the decoder's levels, one fewer, finest first.
    norm
        Makes a norm for so many channels.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        decoder: Sequence[int],
        norm: Norm = nn.InstanceNorm2d,
    ) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            convolutions([before, after, after], norm)
            for before, after in pairwise([channels, *widths])
        )
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        for before, after, skip in zip(
            [*decoder[1:], widths[-1]], decoder, widths[:-1], strict=True
        ):
            self.up.append(enlarged([before, after], norm))
            self.decoder.append(convolutions([after + skip, after, after], norm))
        self.last = nn.Conv2d(decoder[0], 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level in self.encoder:
            x = level(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, level, skip in zip(self.up[::-1], self.decoder[::-1], skips[-2::-1], strict=True):
            x = level(torch.cat([up(x), skip], dim=1))
        return self.last(x)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of -(1 - p)^gamma log p, p the probability of a pixel's class, unweighted.

    Parameters
    ----------
    logits
        (N, 2, H, W), before the softmax: normal, anomalous.
    target
        (N, H, W), boolean: anomalous.
    """
    anomalous = target.to(logits.dtype).clamp(SMOOTH, 1 - SMOOTH)
    normal, defect = functional.softmax(logits, dim=1).unbind(dim=1)
    p = (1 - anomalous) * normal + anomalous * defect + SMOOTH
    return (-((1 - p) ** gamma) * p.log()).mean()


def pooled_maximum(maps: Tensor, window: int = 21) -> Tensor:
    """Scores (N,): the maximum of maps (N, H, W) after a moving average; beyond the border is 0."""
    averages = functional.avg_pool2d(
        maps[:, None], window, stride=1, padding=window // 2, count_include_pad=True
    )
    return averages.amax(dim=(1, 2, 3))
