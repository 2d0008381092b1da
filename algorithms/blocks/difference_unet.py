"""MemSeg's network: a U-Net decoder whose skips are weighted by differences to normal features.

Features of each of the encoder's middle layers and their differences DI to remembered ones are
fused (MSFF, by coordinate attention), coarser layers are added to finer ones, and each is weighted
by where differences lie, on its own grid and on all coarser ones,

    m_L = mean_c DI_L,      m_k = mean_c DI_k * up(m_{k+1}),

before it enters the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the resolution."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, C, h, w) bilinearly, corners onto corners."""
    return functional.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


class CoordinateAttention(nn.Module):
    """Scale (N, C, H, W) by a factor per row and one per column (Hou et al., CVPR 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(8, channels // 32)
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.Hardswish()
        )
        self.rows = nn.Conv2d(width, channels, 1)
        self.columns = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        lines = torch.cat([x.mean(dim=3, keepdim=True), x.mean(dim=2, keepdim=True).mT], dim=2)
        rows, columns = self.squeeze(lines).split(x.shape[2:], dim=2)  # (N, width, H or W, 1)
        return x * self.rows(rows).sigmoid() * self.columns(columns.mT).sigmoid()


class FusionBlock(nn.Module):
    """MSFF of one layer: features beside differences (N, 2C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = conv(2 * channels, 2 * channels)
        self.attention = CoordinateAttention(2 * channels)
        self.squeeze = nn.Sequential(conv(2 * channels, channels), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.squeeze(self.weigh(x) * self.attention(x))  # type: ignore[no-any-return]


class Up(nn.Module):
    """Resize, then convolution, batch norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(channels_in, channels_out), nn.BatchNorm2d(channels_out), nn.ReLU()
        )

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(resize(x, size))  # type: ignore[no-any-return]


def spatial_masks(differences: Sequence[Tensor]) -> list[Tensor]:
    """Where layers differ (N, 1, h, w), finest first, each times the coarser ones."""
    masks = [differences[-1].mean(dim=1, keepdim=True)]
    for layer in reversed(differences[:-1]):
        own = layer.mean(dim=1, keepdim=True)
        masks.append(own * resize(masks[-1], own.shape[2:]))
    return masks[::-1]


class DifferenceUnet(nn.Module):
    """From features and differences to logits (N, 2, H, W).

    Parameters
    ----------
    channels
        Of the backbone's layers, finest first: the stem's, those of the memory, the last one's.
    width
        Channels of the two finest stages.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        stem, *middle, last = channels
        self.fuse = nn.ModuleList(FusionBlock(count) for count in middle)
        pairs = list(zip(middle[1:], middle[:-1], strict=True))
        self.down = nn.ModuleList(conv(coarse, fine) for coarse, fine in pairs)
        inner = middle[::-1]  # the decoder goes from coarse to fine
        wide = [last, *(2 * count for count in inner)]  # each stage's result beside its skip
        self.ups = nn.ModuleList(Up(*pair) for pair in zip(wide, [*inner, width], strict=True))
        self.stem = conv(stem, width)
        self.finest = Up(2 * width, width)
        self.head = conv(width, 2)

    def forward(
        self, layers: Sequence[Tensor], differences: Sequence[Tensor], size: Sequence[int]
    ) -> Tensor:
        stem, *middle, x = layers
        fused = [
            fuse(torch.cat([layer, difference], dim=1))
            for fuse, layer, difference in zip(self.fuse, middle, differences, strict=True)
        ]
        for number in reversed(range(len(fused) - 1)):
            coarser = self.down[number](resize(fused[number + 1], fused[number].shape[2:]))
            fused[number] = fused[number] + coarser
        skips = [y * mask for y, mask in zip(fused, spatial_masks(differences), strict=True)]
        for up, skip in zip(self.ups, [*skips[::-1], self.stem(stem)], strict=True):
            x = torch.cat([up(x, skip.shape[2:]), skip], dim=1)
        return self.head(self.finest(x, size))  # type: ignore[no-any-return]
