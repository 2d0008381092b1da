"""The closed form of PatchCore's embedding against cutting the patches out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from algorithms.blocks.patches import embed, embedding_kernels, pooling_matrix


def cut_and_pool(
    layers: list[Tensor], patch: int, pretrain: int | None, target: int | None
) -> Tensor:
    """Embed (N, H * W, D) as the authors do: cut, resize, pool, stack, pool."""
    height, width = layers[0].shape[-2:]
    pooled = []
    for layer in layers:
        count, channels, h, w = layer.shape
        cut = functional.unfold(layer, patch, padding=patch // 2)  # (N, C * p * p, h * w)
        if (h, w) != (height, width):
            planes = cut.reshape(count, -1, h, w)
            cut = functional.interpolate(planes, (height, width), mode="bilinear").flatten(2)
        vectors = cut.mT.reshape(count * height * width, 1, -1)
        # (channel, row, column): as many bins as channels is the mean over each channel's patch.
        pooled.append(functional.adaptive_avg_pool1d(vectors, pretrain or channels)[:, 0])
    stacked = torch.cat(pooled, dim=1)
    if target is not None:
        stacked = functional.adaptive_avg_pool1d(stacked[:, None], target)[:, 0]
    return stacked.reshape(len(layers[0]), height * width, -1)


@pytest.mark.parametrize(
    ("channels", "pretrain", "target", "patch"),
    [
        ([512, 1024], 1024, 1024, 3),  # WideResNet-50-2, the main run
        ([512, 1024], 1536, 1536, 3),  # SimpleNet
        ([128, 256], 1024, 384, 3),  # ResNet-18, and an ensemble's dimension
        ([512, 1024], 1024, 1024, 5),  # PNI
        ([24, 40, 112], 100, 70, 3),  # nothing divides anything
        ([7, 11], 5, 13, 3),  # fewer bins than channels, more dimensions than bins
        ([4, 6], 64, 64, 3),  # more bins than values in a patch
        ([24, 40, 112], None, None, 3),
        ([6, 10], None, 5, 3),
        ([6, 10], 8, None, 1),
        ([9], None, None, 7),
    ],
)
def test_embedding(
    rng: np.random.Generator,
    channels: list[int],
    pretrain: int | None,
    target: int | None,
    patch: int,
) -> None:
    sizes = [(6, 8), (3, 4), (2, 2)]
    layers = [
        torch.from_numpy(rng.normal(size=(2, count, *size)).astype(np.float32))
        for count, size in zip(channels, sizes, strict=False)
    ]
    result = embed(layers, embedding_kernels(channels, patch, pretrain, target))
    expected = cut_and_pool([layer.double() for layer in layers], patch, pretrain, target)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-6)


def test_wide_resnet_is_depthwise() -> None:
    fine, coarse = embedding_kernels([512, 1024], 3, 1024, 1024)
    # Two bins of 4.5 values per channel overlap in the patch's centre.
    assert fine.groups == 512
    assert fine.weight.shape == (512, 1, 3, 3)
    expected = torch.full((3, 3), 0.1)
    expected[1, 1] = 0.2
    torch.testing.assert_close(fine.weight, expected.expand(512, 1, 3, 3))
    torch.testing.assert_close(fine.rows, torch.arange(512))
    # One bin per channel, then the mean of pairs.
    assert coarse.groups == 512
    torch.testing.assert_close(coarse.weight, torch.full((512, 2, 3, 3), 1 / 18))
    torch.testing.assert_close(coarse.rows, torch.arange(512, 1024))


def test_channel_means_are_depthwise() -> None:
    fine, coarse = embedding_kernels([24, 40], 3, None, None)
    assert (fine.groups, coarse.groups) == (24, 40)
    torch.testing.assert_close(fine.weight, torch.full((24, 1, 3, 3), 1 / 9))


@pytest.mark.parametrize(("length", "bins"), [(9, 9), (12, 4), (10, 3), (5, 8), (4608, 1024)])
def test_pooling_matrix(rng: np.random.Generator, length: int, bins: int) -> None:
    vector = torch.from_numpy(rng.normal(size=(1, 1, length)))
    expected = functional.adaptive_avg_pool1d(vector, bins)[0, 0]
    np.testing.assert_allclose(pooling_matrix(length, bins) @ vector[0, 0].numpy(), expected)


def test_images_do_not_mix(rng: np.random.Generator) -> None:
    layers = [torch.from_numpy(rng.normal(size=(3, 4, s, s)).astype(np.float32)) for s in (6, 3)]
    kernels = embedding_kernels([4, 4], 3, None, None)
    together = embed(layers, kernels)
    for image in range(3):
        alone = embed([layer[image : image + 1] for layer in layers], kernels)
        torch.testing.assert_close(together[image : image + 1], alone)
