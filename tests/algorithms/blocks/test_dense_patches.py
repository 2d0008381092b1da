"""Patch networks: sizes of the fact sheet, and dense descriptors against single patches'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from algorithms.blocks.dense_patches import (
    ARCHITECTURES,
    PatchNetwork,
    channel_counts,
    restore,
    surround,
)

# Kernel and output channels, or the side of a pooling; and the sides that a patch comes down to.
LAYERS = {
    17: ([(6, 128), (5, 256), (5, 256), (4, 128)], [12, 8, 4, 1]),
    33: ([(5, 128), 2, (5, 256), 2, (2, 256), (4, 128)], [29, 14, 10, 5, 4, 1]),
    65: (
        [(5, 128), 2, (5, 128), 2, (5, 128), 2, (4, 256), (1, 128)],
        [61, 30, 26, 13, 9, 4, 1, 1],
    ),
}


def plain(p: int, network: PatchNetwork | None = None) -> nn.Sequential:
    """The network as a list of PyTorch's layers, with another's weights."""
    layers: list[nn.Module] = []
    weights = list(network.convolutions) if network else []
    channels, number = 3, 0
    for layer in LAYERS[p][0]:
        if isinstance(layer, int):
            layers.append(nn.MaxPool2d(layer))
            continue
        kernel, count = layer
        if number:  # after the one before, and not behind the last
            place = len(layers) - isinstance(layers[-1], nn.MaxPool2d)
            layers.insert(place, nn.LeakyReLU(0.005))
        layers.append(weights[number] if weights else nn.Conv2d(channels, count, kernel))
        channels, number = count, number + 1
    return nn.Sequential(*layers)


def small(p: int) -> PatchNetwork:
    torch.manual_seed(p)
    return PatchNetwork(p, channel_counts(p, 1 / 32, 5))


@pytest.mark.parametrize("p", [17, 33, 65])
def test_sizes_and_parameters(p: int) -> None:
    with torch.device("meta"):
        network, reference = PatchNetwork(p, channel_counts(p, 1.0, 128)), plain(p)
        x, sides = torch.zeros(1, 3, p, p), []
        for layer in reference:
            x = layer(x)
            if not isinstance(layer, nn.LeakyReLU):
                sides.append(x.shape[-1])
        assert network(torch.zeros(2, 3, p, p)).shape == (2, 128)
    assert sides == LAYERS[p][1]
    assert [one.shape for one in network.parameters()] == [
        one.shape for one in reference.parameters()
    ]


def test_width() -> None:
    assert channel_counts(65, 1.0, 128) == [128, 128, 128, 256, 128]
    assert channel_counts(33, 0.25, 64) == [32, 64, 64, 64]
    with pytest.raises(ValueError, match=r"no patch network sees 20 px; known: 17, 33, 65"):
        channel_counts(20, 1.0, 128)


@pytest.mark.parametrize("p", list(ARCHITECTURES))
def test_a_patch_is_described_as_by_plain_layers(p: int) -> None:
    network, patches = small(p), torch.randn(4, 3, p, p)
    expected = plain(p, network)(patches).flatten(1)
    torch.testing.assert_close(network(patches), expected, rtol=1e-5, atol=1e-6)


def one_by_one(network: PatchNetwork, images: Tensor, stride: int) -> Tensor:
    """Cut the patch around every pixel and describe it alone: (N, D, rows, columns)."""
    p, (height, width) = network.receptive_field, images.shape[2:]
    canvas = torch.zeros(len(images), 3, height + 2 * p, width + 2 * p)
    canvas[:, :, p : p + height, p : p + width] = images
    reference, rows = plain(p, network), []
    for y in range(0, height, stride):
        top = p + y - (p - 1) // 2
        patches = [
            canvas[:, :, top : top + p, left : left + p]
            for left in (p + x - (p - 1) // 2 for x in range(0, width, stride))
        ]
        described = reference(torch.cat(patches)).flatten(1)
        rows.append(described.unflatten(0, (len(patches), len(images))))
    return torch.stack(rows).permute(2, 3, 0, 1)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 8, 12, 16, 20])
@pytest.mark.parametrize("p", list(ARCHITECTURES))
def test_dense_descriptors_are_those_of_single_patches(p: int, stride: int) -> None:
    network = small(p)
    images = torch.randn(2, 3, 13, 18) if stride < 4 else torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        result = network.slide(surround(images, p), stride)
        expected = one_by_one(network, images, stride)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", list(ARCHITECTURES))
def test_gradients_flow_as_from_single_patches(p: int) -> None:
    network, images = small(p), torch.randn(1, 3, 9, 8)
    network.slide(surround(images, p), 2).square().sum().backward()
    dense = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    one_by_one(network, images, 2).square().sum().backward()
    for ours, parameter in zip(dense, network.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_network_comes_back_from_its_state() -> None:
    network = small(33)
    state = {f"a.b.{key}": value for key, value in network.state_dict().items()}
    again = restore(state | {"else": torch.zeros(1)}, 33, "a.b.")
    patches = torch.randn(2, 3, 33, 33)
    assert torch.equal(network(patches), again(patches))
