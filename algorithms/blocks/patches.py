"""PatchCore's locally aware patch embedding in closed form.

The authors' code cuts every p x p patch out, averages its C * p * p values into a number of bins
per layer, and averages the stacked layers once more. All of it is linear, so it is one convolution
per layer, whose sparse weights fall apart into groups: for WideResNet-50-2 and 1024 dimensions a
depthwise 3 x 3 kernel, without the ninefold memory of cutting patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def pooling_matrix(length: int, bins: int) -> np.ndarray:
    """Weights (bins, length) of adaptive average pooling: bin i averages the entries
    floor(i L / D) ... ceil((i + 1) L / D) - 1, which overlap where D does not divide L."""
    matrix = np.zeros((bins, length))
    for row in range(bins):
        start, stop = row * length // bins, -(-(row + 1) * length // bins)
        matrix[row, start:stop] = 1.0 / (stop - start)
    return matrix


@dataclass(frozen=True)
class LayerKernel:
    """One layer's share of the embedding: a grouped convolution into some of its dimensions."""

    weight: Tensor  # (rows, C / groups, p, p)
    groups: int
    rows: Tensor  # which dimensions of the embedding it adds to


def embedding_kernels(
    channels: list[int], patch: int, pretrain: int | None, target: int | None
) -> list[LayerKernel]:
    """Build the convolutions of the embedding.

    Parameters
    ----------
    channels
        Channels of each layer, finest first.
    patch
        Odd side of a patch.
    pretrain
        Bins per layer; None: one per channel, i.e. the mean over the patch.
    target
        Dimensions of the embedding; None: the sum of the layers' bins.
    """
    bins = [pretrain or count for count in channels]
    second = pooling_matrix(sum(bins), target or sum(bins))
    kernels, start = [], 0
    for count, width in zip(channels, bins, strict=True):
        first = pooling_matrix(count * patch**2, width)
        combined = second[:, start : start + width] @ first
        start += width
        rows = np.flatnonzero(combined.any(axis=1))
        weight = combined[rows].reshape(len(rows), count, patch, patch)
        groups = _group_count(weight)
        shape = (groups, len(rows) // groups, groups, count // groups, patch, patch)
        diagonal = np.einsum("grgcij->grcij", weight.reshape(shape))
        kernels.append(
            LayerKernel(
                torch.tensor(diagonal.reshape(len(rows), -1, patch, patch), dtype=torch.float32),
                groups,
                torch.from_numpy(rows),
            )
        )
    return kernels


def _group_count(weight: np.ndarray) -> int:
    """Largest number of groups into which the weights (rows, C, p, p) fall apart."""
    used = weight.any(axis=(2, 3))
    rows, channels = used.shape
    common = math.gcd(rows, channels)
    for groups in sorted((n for n in range(1, common + 1) if common % n == 0), reverse=True):
        blocks = used.reshape(groups, rows // groups, groups, channels // groups).any(axis=(1, 3))
        if not (blocks & ~np.eye(groups, dtype=bool)).any():
            return groups
    return 1


def embed(layers: list[Tensor], kernels: list[LayerKernel]) -> Tensor:
    """Embed feature maps [(N, C_layer, h, w)] as (N, H * W, D), on the first layer's grid.

    Coarser layers are resized bilinearly after pooling: both are linear and commute.
    """
    size = layers[0].shape[-2:]
    dimensions = 1 + max(int(kernel.rows.max()) for kernel in kernels)
    result = layers[0].new_zeros(len(layers[0]), dimensions, *size)
    for layer, kernel in zip(layers, kernels, strict=True):
        weight = kernel.weight.to(layer)
        pooled = functional.conv2d(
            layer, weight, padding=weight.shape[-1] // 2, groups=kernel.groups
        )
        if pooled.shape[-2:] != size:
            pooled = functional.interpolate(pooled, size, mode="bilinear", align_corners=False)
        result.index_add_(1, kernel.rows.to(layer.device), pooled)
    return result.flatten(2).mT.contiguous()
