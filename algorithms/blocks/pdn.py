"""EfficientAD's networks: the patch description network (PDN) and the autoencoder.

The PDN is four (small) or six (medium) convolutions with ReLUs between them. A descriptor every 4
pixels sees 33 x 33 of them. Without padding an image of side S has S / 4 - 8 descriptors along it,
with padding, which distillation wants, S / 4.

Nearly all of its time goes into convolutions with kernels of 4. For prediction on a CPU,
:class:`FrozenPdn` takes them from ``blocks/short_convolutions.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.blocks.short_convolutions import convolve_tiles, short_weights

# By size: channels between the convolutions; kernel and padding of each. 2 x 2 positions are
# averaged after the first and after the second.
CHANNELS = {"small": (128, 256, 256), "medium": (256, 512, 512, 512)}
LAYERS = {
    "small": ((4, 3), (4, 3), (3, 1), (4, 0)),
    "medium": ((4, 3), (4, 3), (1, 0), (3, 1), (4, 0), (1, 0)),
}
POOLED = 2


class Pdn(nn.Module):
    """Patch description network: images (N, 3, H, W) -> (N, D, h, w).

    Parameters
    ----------
    size
        ``small`` or ``medium``.
    hidden
        Channels between the convolutions.
    outputs
        D; in the medium network also of the layer before the last.
    """

    def __init__(self, size: str, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.size, self.hidden, self.plan = size, tuple(hidden), LAYERS[size]
        channels = [3, *hidden, *[outputs] * (len(self.plan) - len(hidden))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel)
            for (before, after), (kernel, _) in zip(pairwise(channels), self.plan, strict=True)
        )

    @classmethod
    def scaled(cls, size: str, outputs: int, width: float) -> Pdn:
        """Make a network with ``width`` times the publication's channels between its layers."""
        return cls(size, [round(width * count) for count in CHANNELS[size]], outputs)

    @classmethod
    def shaped_like(cls, weights: Mapping[str, Tensor], factor: int = 1) -> Pdn:
        """Make a network for these weights, or one with ``factor`` times its outputs."""
        kernels = sorted(key for key in weights if key.endswith(".weight"))
        channels = [len(weights[key]) for key in kernels]
        size = next(name for name, plan in LAYERS.items() if len(plan) == len(channels))
        return cls(size, channels[: len(CHANNELS[size])], factor * channels[-1])

    @property
    def layers(self) -> list[nn.Conv2d]:
        """Its convolutions."""
        return cast("list[nn.Conv2d]", list(self.convolutions))

    def describe(self, images: Tensor, padded: bool = False) -> Tensor:
        """All but the last convolution."""
        x = images
        for number, (convolution, (_, padding)) in enumerate(
            zip(self.layers[:-1], self.plan[:-1], strict=True)
        ):
            shift = padding if padded else 0
            x = functional.conv2d(x, convolution.weight, convolution.bias, padding=shift).relu_()
            if number < POOLED:
                x = functional.avg_pool2d(x, 2, padding=int(padded))
        return x

    def project(self, x: Tensor, part: slice = slice(None)) -> Tensor:
        """The last convolution, or ``part`` of its outputs."""
        last = self.layers[-1]
        return functional.conv2d(x, last.weight[part], last.bias[part])  # type: ignore[index]

    def forward(self, images: Tensor, padded: bool = False) -> Tensor:
        return self.project(self.describe(images, padded))


def cells(side: int) -> int:
    """Descriptors of an unpadded PDN along ``side`` pixels, a multiple of 4."""
    return side // 4 - 8


class Autoencoder(nn.Module):
    """Images (N, 3, H, W) -> (N, D, h, w) on the grid of an unpadded PDN.

    Parameters
    ----------
    image_size
        (H, W): multiples of 32. Below 256 the bottleneck's kernel shrinks with the image.
    outputs
        D.
    width
        Factor of the publication's channels.
    """

    def __init__(self, image_size: tuple[int, int], outputs: int, width: float = 1.0) -> None:
        super().__init__()
        if any(side % 32 or side < 64 for side in image_size):
            raise ValueError(f"autoencoder: sides must be multiples of 32 from 64 on: {image_size}")
        channels = [3, *(round(width * count) for count in (32, 32, 64, 64, 64))]
        last = channels[-1]
        self.encoder = nn.ModuleList(nn.Conv2d(*pair, 4, 2, 1) for pair in pairwise(channels))
        kernel = (min(8, image_size[0] // 32), min(8, image_size[1] // 32))
        self.bottleneck = nn.Conv2d(last, last, kernel)
        self.sizes = list(zip(*(self.stages(side) for side in image_size), strict=True))
        self.decoder = nn.ModuleList(nn.Conv2d(last, last, 4, padding=2) for _ in self.sizes)
        self.grid = (cells(image_size[0]), cells(image_size[1]))
        self.smooth = nn.Conv2d(last, last, 3, padding=1)
        self.last = nn.Conv2d(last, outputs, 3, padding=1)

    @staticmethod
    def stages(side: int) -> tuple[int, ...]:
        """Sides to which the decoder resizes, one after the other, before its convolutions."""
        sizes = (side // 64 - 1, side // 32, side // 16 - 1, side // 8, side // 4 - 1)
        return tuple(max(1, size) for size in (*sizes, side // 2 - 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for convolution in self.encoder:
            x = convolution(x).relu_()
        x = self.bottleneck(x)
        for size, convolution in zip(self.sizes, self.decoder, strict=True):
            x = convolution(functional.interpolate(x, size, mode="bilinear")).relu_()
            x = functional.dropout(x, 0.2, self.training)
        x = functional.interpolate(x, self.grid, mode="bilinear")
        return self.last(self.smooth(x).relu_())


def channel_statistics(outputs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of (N, D, h, w) over images and positions.

    The deviation of a channel that is constant, but for rounding, is 1: it is divided by.
    """
    sums, count = [], 0
    for output in outputs:
        values = output.transpose(0, 1).flatten(1).double()
        sums.append(torch.stack([values.sum(dim=1), values.square().sum(dim=1)]))
        count += values.shape[1]
    mean, square = torch.stack(sums).sum(dim=0) / count
    std = (square - mean.square()).clamp(min=0).sqrt()
    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1.0)


def random_grayscale(pixels: Tensor, probability: float) -> Tensor:
    """Take the colour out of some of the images (N, 3, H, W)."""
    chosen = torch.rand(len(pixels)) < probability
    return torch.where(chosen.to(pixels.device)[:, None, None, None], luma(pixels), pixels)


def luma(pixels: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) as ITU-R 601 weighs red, green and blue."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=pixels.device)[:, None, None]
    return (weights * pixels).sum(dim=1, keepdim=True)


class FrozenPdn:
    """A PDN whose weights stay as they are: the same function, faster on a CPU.

    Parameters
    ----------
    network
        The PDN, not padded.
    tile
        Side of a tile of outputs; 0: plain convolutions.
    """

    def __init__(self, network: Pdn, tile: int = 4) -> None:
        self.network, self.tile = network, tile
        self.factors: list[Tensor | None] = [
            short_weights(convolution.weight.detach(), tile)
            if tile and number and kernel > 1
            else None
            for number, (convolution, (kernel, _)) in enumerate(
                zip(network.layers, network.plan, strict=True)
            )
        ]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        last = len(self.factors) - 1
        for number, (convolution, factors) in enumerate(
            zip(self.network.layers, self.factors, strict=True)
        ):
            if factors is None:
                x = convolution(x)
            else:
                assert convolution.bias is not None
                kernel = self.network.plan[number][0]
                x = convolve_tiles(x, factors, convolution.bias, self.tile, kernel)
            if number < last:
                x = x.relu_()
            if number < POOLED:
                x = functional.avg_pool2d(x, 2)
        return x
