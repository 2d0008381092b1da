"""MSFlow's coupling across scales: one half of every scale scales and shifts the other halves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Batch

OUTPUT_LIMIT = 1e6  # of the fusion flow's outputs, so that squares stay finite


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W), position by position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def subnet(channels_in: int, hidden: int, channels_out: int) -> nn.Sequential:
    """Convolution, channel norm, ReLU, convolution; both 3 x 3."""
    return nn.Sequential(
        nn.Conv2d(channels_in, hidden, 3, padding=1),
        ChannelNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, channels_out, 3, padding=1),
    )


def pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average (N, C, H, W) over the cells of a coarser grid, which need not divide its own.

    As matrix products, since adaptive pooling's gradient is not deterministic on CUDA.
    """

    def operator(length: int, cells: int) -> Tensor:  # (length, cells)
        return functional.adaptive_avg_pool1d(torch.eye(length, dtype=x.dtype), cells).to(x.device)

    rows, columns = operator(x.shape[2], grid[0]), operator(x.shape[3], grid[1])
    return rows.T @ x @ columns


class Exchange(nn.Module):
    """F: from one half of every scale, how to scale and shift the other half of every scale."""

    def __init__(self, channels_in: list[int], channels_out: list[int], clamp: float) -> None:
        super().__init__()
        self.channels_in, self.clamp = channels_in, clamp
        total = sum(channels_in)
        self.mix = subnet(total, max(1, total // 4), total)
        pairs = list(zip(channels_in, channels_out, strict=True))
        self.scales = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairs)
        self.shifts = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairs)

    def forward(self, halves: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Return log-scales and shifts of each scale; the coarsest grid comes last."""
        height, width = halves[-1].shape[2:]
        mixed = self.mix(torch.cat([pool(half, (height, width)) for half in halves], dim=1))
        parts = functional.relu(mixed).split(self.channels_in, dim=1)
        informed = [
            half + functional.interpolate(part, half.shape[2:], mode="bilinear", align_corners=True)
            for half, part in zip(halves, parts, strict=True)
        ]
        scales = [head(x) for head, x in zip(self.scales, informed, strict=True)]
        # 0.636 = 2 / pi, rounded: the log-scales stay within the clamp.
        scales = [self.clamp * 0.636 * torch.atan(s / self.clamp) for s in scales]
        return scales, [head(x) for head, x in zip(self.shifts, informed, strict=True)]


class FusionFlow(nn.Module):
    """Two-sided coupling over all scales at once, after a fixed permutation of each one's channels.

    With halves a (the first C // 2 channels) and b of every scale: a <- a * exp(s) + t with
    (s, t) = F2(all b), then b <- b * exp(s) + t with (s, t) = F1(all new a).
    """

    def __init__(self, channels: Sequence[int], clamp: float) -> None:
        super().__init__()
        self.first = [count // 2 for count in channels]
        second = [count - count // 2 for count in channels]
        self.for_second = Exchange(self.first, second, clamp)  # F1
        self.for_first = Exchange(second, self.first, clamp)  # F2
        for index, count in enumerate(channels):
            self.register_buffer(f"order{index}", torch.from_numpy(np.random.permutation(count)))

    def _orders(self) -> list[Tensor]:
        return [self.get_buffer(f"order{index}") for index in range(len(self.first))]

    def _split(self, features: Batch) -> tuple[list[Tensor], list[Tensor]]:
        pairs = list(zip(features, self.first, strict=True))
        return [x[:, :count] for x, count in pairs], [x[:, count:] for x, count in pairs]

    def forward(self, features: Batch) -> tuple[list[Tensor], Tensor]:
        """Return the latents of all scales and log|det J| (N,)."""
        orders = self._orders()
        shuffled = [x.index_select(1, order) for x, order in zip(features, orders, strict=True)]
        a, b = self._split(shuffled)
        scales_a, shifts = self.for_first(b)
        a = [x * s.exp() + t for x, s, t in zip(a, scales_a, shifts, strict=True)]
        scales_b, shifts = self.for_second(a)
        b = [x * s.exp() + t for x, s, t in zip(b, scales_b, shifts, strict=True)]
        latents = [torch.cat(halves, dim=1) for halves in zip(a, b, strict=True)]
        volumes = torch.stack([scales.sum(dim=(1, 2, 3)) for scales in scales_a + scales_b])
        return [z.clamp(-OUTPUT_LIMIT, OUTPUT_LIMIT) for z in latents], volumes.sum(dim=0)

    def inverse(self, latents: Batch) -> list[Tensor]:
        """Undo :meth:`forward`."""
        a, b = self._split(latents)
        scales, shifts = self.for_second(a)
        b = [(x - t) * (-s).exp() for x, s, t in zip(b, scales, shifts, strict=True)]
        scales, shifts = self.for_first(b)
        a = [(x - t) * (-s).exp() for x, s, t in zip(a, scales, shifts, strict=True)]
        shuffled = [torch.cat(halves, dim=1) for halves in zip(a, b, strict=True)]
        orders = self._orders()
        return [
            x.index_select(1, order.argsort()) for x, order in zip(shuffled, orders, strict=True)
        ]
