"""A network that looks at images and moves their pixels, coarsely and finely, and back (PPDM).

Offsets are in halves of the image's side, as places are: -1 is the first pixel, 1 the last. The
network has coordinates beside its images and features, of blocks of 4 x 4 pixels and of the pixels
in a block. It is small but works at the images' full resolution.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 4  # pixels


def coordinates(size: tuple[int, int]) -> Tensor:
    """Where pixels are (4, H, W): along rows, then columns, inside of a block and the block's."""
    channels = []
    for axis, length in enumerate(size):
        position = torch.arange(length)
        block = (position // BLOCK) / max(1, (length - 1) // BLOCK)
        for values in (position / (length - 1) - block, block):
            line = 2 * values - 1
            channels.append((line if axis else line[:, None]).expand(size))
    return torch.stack(channels)


def warp(images: Tensor, offsets: Tensor) -> Tensor:
    """Sample images (N, C, H, W) at each pixel's place plus its offset (N, 2, H, W) in (x, y)."""
    down, across = (torch.linspace(-1, 1, side, device=images.device) for side in offsets.shape[2:])
    identity = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
    grid = (identity + offsets.movedim(1, -1)).clamp(-1, 1)
    return functional.grid_sample(images, grid, align_corners=True)


def lengths(offsets: Tensor) -> Tensor:
    """Euclidean norms (N, H, W) of offsets (N, 2, H, W); at 0 they have a gradient, too."""
    return (offsets.square().sum(dim=1) + 1e-12).sqrt()


def roughness(offsets: Tensor) -> Tensor:
    """Mean absolute difference of the sum of both offsets from that of the eight neighbours."""
    kernel = torch.full((1, 1, 3, 3), -1 / 8, device=offsets.device)
    kernel[0, 0, 1, 1] = 1
    return functional.conv2d(offsets.sum(dim=1, keepdim=True), kernel, padding=1).abs().mean()


class CoordinateConv(nn.Module):
    """3x3 convolution that is told where it is, then batch norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in + 4, channels_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        places = coordinates((x.shape[2], x.shape[3])).to(x).expand(len(x), -1, -1, -1)
        return functional.relu(self.norm(self.conv(torch.cat([x, places], dim=1))))


class Fields(NamedTuple):
    """Offsets (N, 2, H, W) in x and y, in halves of the image's side."""

    coarse: Tensor
    fine: Tensor
    coarse_back: Tensor
    fine_back: Tensor


class Deformation(nn.Module):
    """Images (N, 3, H, W) -> the four fields that straighten them and lead back."""

    def __init__(self, width: int, coarse_scale: float, fine_scale: float) -> None:
        super().__init__()
        self.scales = (coarse_scale, fine_scale) * 2
        self.local = nn.Sequential(CoordinateConv(3, width), CoordinateConv(width, width))
        self.residual = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        self.norm = nn.BatchNorm2d(width)
        self.heads = nn.ModuleList(self._head(width, halvings) for halvings in (3, 1, 3, 1))

    @staticmethod
    def _head(width: int, halvings: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before, after in pairwise([2 * width] + [width] * halvings):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(width, 2, 3, padding=1), nn.Tanh())

    def forward(self, images: Tensor) -> Fields:
        local = self.local(images)
        both = torch.cat([self.norm(local + self.residual(local)), local], dim=1)
        size = images.shape[2:]
        return Fields(
            *(
                scale
                * functional.interpolate(head(both), size, mode="bilinear", align_corners=True)
                for head, scale in zip(self.heads, self.scales, strict=True)
            )
        )


def deformation_loss(images: Tensor, straight: Tensor, fields: Fields, gamma: float) -> Tensor:
    """Small and smooth fields that lead back from straightened images to the given ones."""
    returned = warp(warp(straight, fields.fine_back), fields.coarse_back)
    small = lengths(fields.coarse).mean() + lengths(fields.fine).mean()
    smooth = torch.stack([roughness(field) for field in fields]).sum()
    return small + smooth + gamma * functional.mse_loss(returned, images)
