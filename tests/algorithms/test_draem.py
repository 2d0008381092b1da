"""DRAEM: its networks' sizes, its losses, and what it trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from algorithms.base import Context, create
from algorithms.blocks.segmentation import focal_loss
from algorithms.draem import Autoencoder, Networks, ssim, unet

SMALL = {"reconstruction_width": 8, "discrimination_width": 8}


def make(parameters: dict[str, Any], **context: Any) -> Any:
    surroundings = Context((64, 64), ((3, 64, 64),), 8, 0, torch.device("cpu"))
    return create("draem", SMALL | parameters, replace(surroundings, **context))


def layers(*channels: int) -> int:
    """Parameters of 3 x 3 convolutions with bias, each with a batch norm."""
    return sum(9 * a * b + 3 * b for a, b in pairwise(channels))


def test_parameters_and_shapes_of_the_paper() -> None:
    with torch.device("meta"):
        autoencoder, network = Autoencoder(128), unet(64)
        images = torch.empty(1, 3, 256, 256)
        assert autoencoder(images).shape == (1, 3, 256, 256)
        assert network(torch.cat([images, images], dim=1)).shape == (1, 2, 256, 256)
        assert nn.Sequential(*list(autoencoder)[:9])(images).shape == (1, 1024, 16, 16)

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    b = 128
    encoder = layers(3, b, b, 2 * b, 2 * b, 4 * b, 4 * b, *[8 * b] * 4)
    decoder = layers(*[8 * b] * 3, 4 * b, 4 * b, 4 * b, 2 * b, 2 * b, 2 * b, b, b, b, b)
    assert count(autoencoder) == encoder + decoder + 9 * b * 3 + 3
    c = 64
    down = layers(6, c, c, 2 * c, 2 * c, 4 * c, 4 * c, *[8 * c] * 6)
    up = sum(
        layers(a, z)
        for a, z in ((8 * c, 8 * c), (8 * c, 4 * c), (4 * c, 2 * c), (2 * c, c), (c, c))
    )
    fuse = layers(16 * c, 8 * c, 8 * c) + layers(12 * c, 4 * c, 4 * c) + layers(6 * c, 2 * c, 2 * c)
    fuse += layers(3 * c, c, c) + layers(2 * c, c, c)
    assert count(network) == down + up + fuse + 9 * c * 2 + 2
    assert count(autoencoder) + count(network) == pytest.approx(97.4e6, rel=1e-3)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    networks = Networks(16, 16)
    for module in networks.modules():
        if isinstance(module, nn.Conv2d):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
        if isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.detach().mean()) == pytest.approx(1, abs=0.02)
            assert not module.bias.any()


def test_unet_sees_the_redrawn_image_first_and_trains_the_autoencoder() -> None:
    torch.manual_seed(0)
    networks = Networks(8, 8)
    seen: list[Tensor] = []
    networks.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 64, 64)
    redrawn, logits = networks(images)
    assert torch.equal(seen[0], torch.cat([redrawn, images], dim=1))
    focal_loss(logits, torch.rand(2, 64, 64) < 0.5, 2).backward()
    assert float(networks.autoencoder[0][0].weight.grad.abs().sum()) > 0


def test_ssim_against_scikit_image() -> None:
    rng = np.random.default_rng(0)
    one = rng.random((2, 3, 40, 48))
    other = np.clip(one + rng.normal(0, 0.2, one.shape), 0, 1)
    result = ssim(torch.from_numpy(one), torch.from_numpy(other)).numpy()
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for image, likeness in enumerate(result):
        for channel in range(3):
            pair = one[image, channel], other[image, channel]
            _, full = structural_similarity(*pair, data_range=1.0, full=True, **settings)
            inside = (slice(5, -5), slice(5, -5))  # beyond, scikit-image repeats the border
            np.testing.assert_allclose(likeness[channel][inside], full[inside], atol=1e-6)
    # In a corner, zeros lie beyond the border.
    window = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2
    a, b = (np.pad(values[0, 0], 5)[:11, :11] for values in (one, other))
    means = (window * a).sum(), (window * b).sum()
    spread = (window * (a**2 + b**2)).sum() - means[0] ** 2 - means[1] ** 2
    shared = (window * a * b).sum() - means[0] * means[1]
    expected = (2 * means[0] * means[1] + 1e-4) * (2 * shared + 9e-4)
    expected /= (means[0] ** 2 + means[1] ** 2 + 1e-4) * (spread + 9e-4)
    assert result[0, 0, 0, 0] == pytest.approx(expected)
    assert float(ssim(torch.from_numpy(one), torch.from_numpy(one)).min()) == pytest.approx(1)


def test_examples() -> None:
    algorithm = make({"rotated": 0.0})
    torch.manual_seed(0)
    image = torch.rand(3, 64, 64)
    anomalous = 0
    for _ in range(200):
        clean, seen, mask = algorithm.synthesise(image)
        assert torch.equal(clean, image)
        assert torch.equal(seen[:, ~mask], image[:, ~mask])
        assert float(seen.min()) >= 0 and float(seen.max()) <= 1
        anomalous += bool(mask.any())
        if mask.any():
            assert not torch.equal(seen[:, mask], image[:, mask])
    assert 0.35 < anomalous / 200 < 0.6  # few masks are empty


def test_weight_of_the_texture() -> None:
    """Where all sources are white, and the image black, the seen image is the source's weight."""

    class White:
        def __len__(self) -> int:
            return 1

        def read(self, rows: Sequence[int]) -> Tensor:
            return torch.ones(len(rows), 3, 64, 64)

    parameters = {"rotated": 0.0, "anomalous": 1.0, "operations": 0, "exponents": (2, 3)}
    algorithm = make(parameters, textures=White())
    torch.manual_seed(0)
    weights = []
    for _ in range(300):
        _, seen, mask = algorithm.synthesise(torch.zeros(3, 64, 64))
        values = seen[:, mask]
        if mask.any():
            assert float(values.max() - values.min()) == 0
            weights.append(float(values.mean()))
    assert 0.2 <= min(weights) < 0.25 and 0.95 < max(weights) <= 1
    assert np.mean(weights) == pytest.approx(0.6, abs=0.05)


def test_rotated_images_are_the_target_too() -> None:
    algorithm = make({"rotated": 1.0, "anomalous": 0.0})
    torch.manual_seed(0)
    image = torch.rand(3, 64, 64)
    clean, seen, mask = algorithm.synthesise(image)
    assert torch.equal(clean, seen) and not mask.any()
    assert not torch.equal(clean, image)


def test_pixels_are_not_normalised() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    algorithm = make({"reduction": 2}, mean=mean, std=std)
    pixels = np.random.default_rng(0).random((2, 3, 64, 64))
    normalised = (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    result = algorithm._pixels([torch.from_numpy(normalised).float()])
    expected = pixels.reshape(2, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_loss_is_the_sum_of_three() -> None:
    algorithm = make({"anomalous": 1.0})
    images = torch.rand(2, 3, 64, 64)
    torch.manual_seed(1)
    loss = algorithm.loss([images])
    torch.manual_seed(1)
    clean, seen, masks = (
        torch.stack(part) for part in zip(*map(algorithm.synthesise, images), strict=True)
    )
    redrawn, logits = algorithm.network(seen)
    expected = (redrawn - clean).square().mean() + (1 - ssim(redrawn, clean)).mean()
    torch.testing.assert_close(loss, expected + focal_loss(logits, masks, 2.0))


def test_rate_falls_at_the_milestones() -> None:
    algorithm = make({"milestones": (2, 3), "learning_rate": 1e-3})
    loader = [[torch.rand(2, 3, 64, 64)]]
    rates = []
    for _ in range(4):
        algorithm.train_one_epoch(loader)
        rates.append(algorithm.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 2e-4, 4e-5])


@pytest.mark.parametrize(
    ("steps", "seen"), [(None, [0, 1, 2]), (2, [0, 1]), (7, [0, 1, 2] * 2 + [0])]
)
def test_steps_per_epoch(
    steps: int | None, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = make({"steps_per_epoch": steps})
    came: list[int] = []

    def loss(batch: list[Tensor]) -> Tensor:
        came.append(int(batch[0][0, 0, 0, 0]))
        return algorithm.network.unet.last.bias.sum()

    monkeypatch.setattr(algorithm, "loss", loss)
    algorithm.train_one_epoch([[torch.full((2, 3, 64, 64), float(n))] for n in range(3)])
    assert came == seen
    assert algorithm.epoch == 1


def test_sides_must_be_divisible() -> None:
    make({"reduction": 2})
    with pytest.raises(ValueError, match="divisible by 96"):
        make({"reduction": 3})
