"""EfficientAD's networks: sizes of their maps, parameter counts, and short convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from algorithms.blocks.pdn import (
    CHANNELS,
    Autoencoder,
    FrozenPdn,
    Pdn,
    cells,
    luma,
    random_grayscale,
)


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts() -> None:
    """By hand: outputs x (inputs x kernel^2 + 1), layer by layer."""
    with torch.device("meta"):
        small = [Pdn.scaled("small", outputs, 1.0) for outputs in (384, 768)]
        medium = [Pdn.scaled("medium", outputs, 1.0) for outputs in (384, 768)]
        autoencoder = Autoencoder((256, 256), 384)
    shared = 128 * (3 * 16 + 1) + 256 * (128 * 16 + 1) + 256 * (256 * 9 + 1)
    assert count(small[0]) == shared + 384 * (256 * 16 + 1) == 2_694_144
    assert count(small[1]) == shared + 768 * (256 * 16 + 1) == 4_267_392
    shared = 256 * (3 * 16 + 1) + 512 * (256 * 16 + 1) + 512 * (512 + 1) + 512 * (512 * 9 + 1)
    assert count(medium[0]) == shared + 384 * (512 * 16 + 1) + 384 * (384 + 1) == 8_026_624
    assert count(medium[1]) == shared + 768 * (512 * 16 + 1) + 768 * (768 + 1) == 11_615_488
    encoder = 32 * 49 + 32 * (32 * 16 + 1) + 64 * (32 * 16 + 1) + 2 * 64 * (64 * 16 + 1)
    decoder = 6 * 64 * (64 * 16 + 1) + 64 * (64 * 9 + 1) + 384 * (64 * 9 + 1)
    assert count(autoencoder) == encoder + 64 * (64 * 64 + 1) + decoder == 1_096_320


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize(("side", "plain", "padded"), [(256, 56, 64), (320, 72, 80), (64, 8, 16)])
def test_grids(size: str, side: int, plain: int, padded: int) -> None:
    with torch.device("meta"):
        network, image = Pdn.scaled(size, 10, 0.25), torch.zeros(2, 3, side, side)
        assert network(image).shape == (2, 10, plain, plain)
        assert network(image, padded=True).shape == (2, 10, padded, padded)
    assert cells(side) == plain


@pytest.mark.parametrize("size", ["small", "medium"])
def test_a_descriptor_sees_33_pixels(size: str) -> None:
    torch.manual_seed(0)
    network = Pdn.scaled(size, 4, 0.125)
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    network(image)[0, :, 3, 5].sum().backward()
    assert image.grad is not None
    rows, columns = image.grad.abs().sum(dim=(0, 1)).nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (12, 44)
    assert (columns.min(), columns.max()) == (20, 52)


def test_padding_changes_the_border_only() -> None:
    torch.manual_seed(0)
    network, image = Pdn.scaled("small", 4, 0.125), torch.rand(1, 3, 96, 96)
    plain, padded = network(image), network(image, padded=True)
    # Pools are shifted by one: the inner grids see the same pixels where both shifts agree.
    assert plain.shape[2] == padded.shape[2] - 8
    reference = functional.conv2d(
        image, network.convolutions[0].weight, network.convolutions[0].bias
    )
    reference = functional.avg_pool2d(functional.relu(reference), 2)
    second = network.convolutions[1]
    reference = functional.avg_pool2d(functional.relu(second(reference)), 2)
    reference = functional.relu(network.convolutions[2](reference))
    torch.testing.assert_close(plain, network.convolutions[3](reference))


def test_networks_like_given_weights() -> None:
    for size in CHANNELS:
        weights = Pdn.scaled(size, 24, 0.25).state_dict()
        Pdn.shaped_like(weights).load_state_dict(weights)
        student = Pdn.shaped_like(weights, factor=2)
        assert student.size == size
        assert student.convolutions[-1].out_channels == 48
    assert student.convolutions[-2].out_channels == 48  # medium: the layer before, too
    assert student.convolutions[-3].out_channels == round(0.25 * CHANNELS["medium"][-1])


def test_a_part_of_the_outputs() -> None:
    torch.manual_seed(0)
    network, image = Pdn.scaled("medium", 12, 0.125), torch.rand(2, 3, 64, 64)
    whole = network(image)
    part = network.project(network.describe(image), slice(5, None))
    torch.testing.assert_close(part, whole[:, 5:])


def test_autoencoder_sizes() -> None:
    assert Autoencoder.stages(256) == (3, 8, 15, 32, 63, 127)
    assert Autoencoder.stages(512) == (7, 16, 31, 64, 127, 255)
    with torch.device("meta"):
        network = Autoencoder((256, 256), 384)
        hidden = torch.zeros(1, 3, 256, 256)
        for convolution, side in zip(network.encoder, (128, 64, 32, 16, 8), strict=True):
            hidden = convolution(hidden)
            assert hidden.shape[2:] == (side, side)
        assert network.bottleneck(hidden).shape == (1, 64, 1, 1)
        for sides, grid in [((320, 256), (72, 56)), ((64, 96), (8, 16)), ((512, 512), (120, 120))]:
            network = Autoencoder(sides, 7, width=0.25)
            assert network(torch.zeros(2, 3, *sides)).shape == (2, 7, *grid)


@pytest.mark.parametrize("sides", [(250, 256), (256, 32)])
def test_sizes_that_do_not_fit_are_refused(sides: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        Autoencoder(sides, 8)


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    network, image = Autoencoder((64, 64), 6), torch.rand(1, 3, 64, 64)
    network.eval()
    assert torch.equal(network(image), network(image))
    network.train()
    assert not torch.equal(network(image), network(image))


@pytest.mark.parametrize("size", ["small", "medium"])
def test_frozen_network_gives_the_same(size: str) -> None:
    torch.manual_seed(0)
    network, images = Pdn.scaled(size, 48, 0.25), torch.randn(2, 3, 96, 64)
    expected = network(images).detach()
    for tile in (0, 4):
        result = FrozenPdn(network, tile)(images)
        error = (result - expected).abs().max() / expected.std()
        assert error < 1e-4


def test_grayscale(rng: np.random.Generator) -> None:
    pixels = torch.from_numpy(rng.random((200, 3, 4, 5)))
    expected = np.tensordot(pixels.numpy(), [0.299, 0.587, 0.114], axes=(1, 0))
    np.testing.assert_allclose(luma(pixels)[:, 0], expected, rtol=1e-6)
    torch.manual_seed(0)
    result = random_grayscale(pixels, 0.3)
    grey = (result == result[:, :1]).flatten(1).all(dim=1)
    assert 30 < int(grey.sum()) < 90
    torch.testing.assert_close(result[~grey], pixels[~grey])
    np.testing.assert_allclose(result[grey][:, 1], expected[grey.numpy()], rtol=1e-6)
    assert torch.equal(random_grayscale(pixels, 0.0), pixels)
