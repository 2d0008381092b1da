"""Deformation of images: coordinates, warps, costs of offsets and the network's sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve, map_coordinates
from torch import Tensor, nn

from algorithms.blocks.deformation import (
    Deformation,
    Fields,
    coordinates,
    deformation_loss,
    lengths,
    roughness,
    warp,
)


def test_coordinates() -> None:
    found = coordinates((256, 256)).numpy()
    assert found.shape == (4, 256, 256)
    for i in (0, 3, 4, 130, 255):
        block = (i // 4) / 63
        inside = i / 255 - block
        np.testing.assert_allclose(found[0, i], 2 * inside - 1, atol=1e-6)
        np.testing.assert_allclose(found[1, i], 2 * block - 1, atol=1e-6)
        np.testing.assert_allclose(found[2, :, i], 2 * inside - 1, atol=1e-6)
        np.testing.assert_allclose(found[3, :, i], 2 * block - 1, atol=1e-6)
    assert np.abs(found[0] + 1).max() < 0.024


def test_coordinates_of_other_sides() -> None:
    found = coordinates((10, 7))
    assert found.shape == (4, 10, 7)
    assert found[1].unique().tolist() == [-1, 0, 1]  # rows 0-3, 4-7 and 8-9
    assert found[3].unique().tolist() == [-1, 1]


def test_no_offset_is_no_change(rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.normal(size=(2, 3, 9, 12))).float()
    torch.testing.assert_close(warp(images, torch.zeros(2, 2, 9, 12)), images)


def test_warp(rng: np.random.Generator) -> None:
    """Against SciPy's interpolation; places beyond the border are the border."""
    images, offsets = rng.normal(size=(2, 1, 9, 12)), rng.normal(0, 0.3, (2, 2, 9, 12))
    found = warp(*(torch.from_numpy(values).float() for values in (images, offsets)))
    rows, columns = np.mgrid[:9, :12].astype(float)
    for image, (x, y), result in zip(images, offsets, found.numpy(), strict=True):
        places = np.clip(rows + y * 4, 0, 8), np.clip(columns + x * 5.5, 0, 11)
        np.testing.assert_allclose(result[0], map_coordinates(image[0], places, order=1), atol=1e-5)


def test_lengths_have_a_gradient_at_zero() -> None:
    offsets = torch.zeros(1, 2, 3, 3)
    offsets[0, :, 1, 1] = torch.tensor([3.0, -4.0])
    offsets.requires_grad_()
    found = lengths(offsets)
    assert found[0, 1, 1] == 5 and found[0, 0, 0] < 1e-5
    found.sum().backward()
    assert torch.isfinite(offsets.grad).all()


def test_roughness(rng: np.random.Generator) -> None:
    offsets = rng.normal(size=(2, 2, 6, 7))
    kernel = np.full((3, 3), -1 / 8)
    kernel[1, 1] = 1
    # The sum over components is taken before the absolute value.
    filtered = [sum(convolve(part, kernel, mode="constant") for part in one) for one in offsets]
    found = roughness(torch.from_numpy(offsets).float())
    assert float(found) == pytest.approx(np.abs(filtered).mean(), rel=1e-5)


def test_loss(rng: np.random.Generator) -> None:
    images, straight = (torch.from_numpy(rng.normal(size=(2, 3, 8, 8))).float() for _ in range(2))
    fields = Fields(*torch.from_numpy(rng.normal(0, 0.1, (4, 2, 2, 8, 8))).float())
    returned = warp(warp(straight, fields.fine_back), fields.coarse_back)
    expected = 3 * float(((returned - images) ** 2).mean())
    expected += sum(float(np.linalg.norm(one, axis=1).mean()) for one in fields[:2])
    expected += sum(float(roughness(one)) for one in fields)
    assert float(deformation_loss(images, straight, fields, 3.0)) == pytest.approx(expected)


def convolutions(module: nn.Module) -> list[tuple[int, int, int, int, bool]]:
    """(channels in, channels out, kernel, stride, bias), in order."""
    return [
        (one.in_channels, one.out_channels, one.kernel_size[0], one.stride[0], one.bias is not None)
        for one in module.modules()
        if isinstance(one, nn.Conv2d)
    ]


def test_authors_network() -> None:
    network = Deformation(64, 0.0625, 0.0234375)
    assert convolutions(network.local) == [(7, 64, 3, 1, False), (68, 64, 3, 1, False)]
    assert convolutions(network.residual) == [(64, 64, 3, 1, True), (64, 64, 1, 1, True)]
    last = [(64, 2, 3, 1, True)]
    coarse = [(128, 64, 3, 2, True), (64, 64, 3, 2, True), (64, 64, 3, 2, True), *last]
    fine = [(128, 64, 3, 2, True), *last]
    assert [convolutions(head) for head in network.heads] == [coarse, fine, coarse, fine]
    # Kernels and biases of the fact sheet's convolutions; two numbers per normalised channel, of
    # 2 + 2 + 2 (3 + 1) layers.
    kernels = 63 * 64 + 612 * 64 + 576 * 64 + 64 * 64 + 4 * 1152 * 64 + 4 * 576 * 64 + 4 * 1152
    biases = 2 * 64 + 8 * 64 + 4 * 2
    assert sum(one.numel() for one in network.parameters()) == kernels + biases + 12 * 128


def test_fields_stay_within_their_scales() -> None:
    torch.manual_seed(0)
    network = Deformation(4, 0.0625, 0.0234375)
    with torch.no_grad():
        for head in network.heads:
            head[-2].weight.mul_(100)
        fields = network(torch.randn(2, 3, 32, 32))
    for field, limit in zip(fields, (0.0625, 0.0234375) * 2, strict=True):
        assert field.shape == (2, 2, 32, 32)
        assert 0.9 * limit < float(field.abs().max()) < 1.0001 * limit


def test_it_learns_to_undo_a_shift() -> None:
    """Of images that are moved by a pixel or two along x, none differs after straightening."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def shifted(by: Tensor) -> Tensor:
        pattern = torch.sin((columns - by[:, None, None]) / 4) + torch.cos(rows / 5)
        return pattern[:, None].expand(-1, 3, -1, -1)

    still = shifted(torch.zeros(8))
    network = Deformation(8, 0.25, 0.1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    errors = []
    for _ in range(40):
        images = shifted(torch.rand(8) * 4 - 2)
        fields = network(images)
        loss = (warp(warp(images, fields.coarse), fields.fine) - still).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach() / (images - still).square().mean()))
    assert np.mean(errors[-5:]) < 0.5
