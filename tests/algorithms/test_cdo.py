"""CDO: differences, loss, patches of noise and maps; an apprentice with weights of its own."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, grey_dilation, median_filter
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Context, create
from algorithms.cdo import collaborative_loss, differences, fresh_copy
from tests.algorithms.conftest import toy_network

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_layers(rng: np.random.Generator, count: int = 3) -> list[Tensor]:
    shapes = ((5, 8, 8), (7, 4, 4), (9, 2, 2))
    return [torch.from_numpy(rng.normal(size=(count, *shape))) for shape in shapes]


def built(**parameters: Any) -> Any:
    """An untrained algorithm for images of 256 px, normalised."""
    context = Context((256, 256), ((3, 256, 256),), 4, 0, torch.device("cpu"), 1, MEAN, STD)
    return create("cdo", parameters, replace(context, backbone=toy_network))


def pictures(values: np.ndarray) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1], normalised."""
    mean, std = (np.array(one)[:, None, None] for one in (MEAN, STD))
    return torch.from_numpy((values - mean) / std).float()


def test_differences(rng: np.random.Generator) -> None:
    expert, apprentice = random_layers(rng), random_layers(rng)
    for found, left, right in zip(differences(expert, apprentice), expert, apprentice, strict=True):
        a, b = (
            functional.interpolate(one, (8, 8), mode="bilinear", align_corners=True).numpy()
            for one in (left, right)
        )
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(found, 2 - 2 * cosine, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_loss(rng: np.random.Generator, gamma: float, share: float) -> None:
    distances = rng.uniform(0.1, 2, (4, 8, 8))
    noisy = rng.random((4, 8, 8)) < share
    normal, synthetic = distances[~noisy], distances[noisy]
    above, below = 0.0, 0.0
    for d in normal:
        weight = (d / normal.mean()) ** gamma
        above, below = above + weight * d, below + weight
    for d in synthetic:
        weight = (synthetic.mean() / d) ** gamma
        above, below = above - weight * d, below + weight
    result = collaborative_loss(torch.from_numpy(distances), torch.from_numpy(noisy), gamma)
    assert float(result) == pytest.approx(4 * above / below)


def test_gradient_of_the_loss_is_that_of_constant_weights(rng: np.random.Generator) -> None:
    distances = torch.from_numpy(rng.uniform(0.1, 2, (4, 8, 8))).requires_grad_()
    noisy = torch.from_numpy(rng.random((4, 8, 8)) < 0.1)
    collaborative_loss(distances, noisy, 2).backward()
    assert (distances.grad[noisy] < 0).all() and (distances.grad[~noisy] > 0).all()
    d = distances.detach()
    expected = 4 * (d / d[~noisy].mean()) ** 2
    total = expected[~noisy].sum() / 4 + ((d[noisy].mean() / d[noisy]) ** 2).sum()
    torch.testing.assert_close(distances.grad[~noisy], expected[~noisy] / total)


@pytest.mark.parametrize("normal", [0.0, 0.5])
def test_noise_that_nobody_tells_apart_is_no_infinity(normal: float) -> None:
    distances = torch.full((2, 4, 4), normal)
    distances[0, 2:] = 0
    distances.requires_grad_()
    noisy = torch.zeros(2, 4, 4, dtype=torch.bool)
    noisy[0, 1:3] = True
    loss = collaborative_loss(distances, noisy, 2.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(distances.grad).all()


class TestNoise:
    """What the apprentice sees: images with patches, and where they are."""

    def test_patches(self, rng: np.random.Generator) -> None:
        algorithm = built(skip_background=False)
        images = pictures(rng.random((1, 3, 256, 256))).expand(200, -1, -1, -1)
        torch.manual_seed(0)
        noisy, masks = algorithm._with_noise(images)
        assert torch.equal((noisy != images).any(dim=1), masks)  # noise never hits all three values
        whole = int((~masks).all(dim=(1, 2)).sum())
        assert 25 <= whole <= 55, "one of five images stays normal"
        assert 0.01 < float(masks.float().mean()) < 0.05  # two patches of 30 x 30 in the mean
        levels = 255 * algorithm.context.pixels(noisy).movedim(1, -1)[masks]
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        assert levels.min() > -0.01 and 253 < levels.max() < 254.01
        assert abs(float(levels.mean()) - 127) < 1

    def test_sides(self, rng: np.random.Generator) -> None:
        algorithm = built(skip_background=False, max_patches=1)
        images = pictures(rng.random((1, 3, 256, 256))).expand(150, -1, -1, -1)
        torch.manual_seed(0)
        masks = algorithm._with_noise(images)[1]
        sides = [int(mask.any(dim=axis).sum()) for mask in masks if mask.any() for axis in (0, 1)]
        assert set(sides) <= set(range(12, 50, 2))
        assert min(sides) < 16 and max(sides) > 44

    def test_centres_are_off_the_background(self) -> None:
        values = np.full((1, 3, 256, 256), 0.95)  # bright, but for an object and a speck
        values[:, :, 60:160, 100:220] = 0.5
        values[:, :, 20:22, 20:22] = 0.5
        grey = (values[0].mean(axis=0) * 255 > 220).astype(float)
        outside = grey_dilation(median_filter(grey, 7, mode="nearest"), (19, 19)) > 0
        assert 0.1 < 1 - outside.mean() < 0.2
        algorithm = built(max_patches=1)
        images = pictures(values).expand(100, -1, -1, -1)
        torch.manual_seed(0)
        masks = algorithm._with_noise(images)[1]
        found = 0
        for mask in masks.numpy():
            if mask.any():
                rows, columns = mask.nonzero()
                centre = math.ceil(rows.mean()), math.ceil(columns.mean())
                assert not outside[centre]
                found += 1
        assert 30 < found < 70

    def test_an_image_that_is_all_background_stays(self) -> None:
        images = pictures(np.full((8, 3, 256, 256), 0.99))
        noisy, masks = built()._with_noise(images)
        assert torch.equal(noisy, images) and not masks.any()

    def test_no_patches(self, rng: np.random.Generator) -> None:
        images = pictures(rng.random((8, 3, 256, 256)))
        noisy, masks = built(skip_background=False, max_patches=0)._with_noise(images)
        assert torch.equal(noisy, images) and not masks.any()


class TestApprentice:
    """The same architecture; nothing that the expert knows."""

    def test_has_weights_of_its_own(self) -> None:
        expert = toy_network()
        with torch.no_grad():
            for value in expert.state_dict().values():  # as if pretrained
                value.add_(3)
        before = copy.deepcopy(expert.state_dict())
        torch.manual_seed(0)
        apprentice = fresh_copy(expert)
        assert all(one.requires_grad for one in apprentice.parameters())
        assert not any(one.requires_grad for one in expert.parameters())
        for name, module in apprentice.named_modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel()
                assert abs(float(module.weight.detach().mean())) < 0.1, name
                expected = math.sqrt(2 / fan_out)
                assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.15)
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all() and (module.bias == 0).all()
                assert (module.running_mean == 0).all() and (module.running_var == 1).all()
        for key, value in expert.state_dict().items():
            assert torch.equal(value, before[key]), key

    def test_grouped_convolutions(self) -> None:
        torch.manual_seed(0)
        layer = nn.Conv2d(512, 512, 5, groups=512)
        copied = fresh_copy(layer)
        assert float(copied.weight.detach().std()) == pytest.approx(math.sqrt(2 / 25), rel=0.05)
        assert not copied.bias.any()

    def test_unknown_layers_are_refused(self) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(3))

        with pytest.raises(ValueError, match="cannot draw new weights for a Own"):
            fresh_copy(nn.Sequential(Own()))

    def test_training_moves_it_and_not_the_expert(self, image_toy: Any, fit: Any) -> None:
        algorithm = fit("cdo", {"skip_background": False}, image_toy.train, epochs=3).algorithm
        assert algorithm.network.training and not algorithm.expert.training
        for one, other in zip(
            algorithm.expert.state_dict().values(), toy_network().state_dict().values(), strict=True
        ):
            assert torch.equal(one, other)
        assert algorithm.optimizer.param_groups[0]["lr"] == pytest.approx(4e-4 * 0.95**2)
        assert not any("expert" in key for key in algorithm.state())
        norm = next(one for one in algorithm.network.modules() if isinstance(one, nn.BatchNorm2d))
        assert norm.running_mean is not None and norm.running_mean.abs().max() > 0


def test_training_lowers_the_loss(image_toy: Any, fit: Any) -> None:
    faster = {"skip_background": False, "learning_rate": 4e-3}
    losses = fit("cdo", faster, image_toy.train, epochs=8).progress.losses
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]


def test_map_and_scores(image_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("cdo", {"skip_background": False}, image_toy.train).algorithm
    prediction = predict(algorithm, image_toy.test)
    assert not algorithm.network.training
    images = torch.from_numpy(image_toy.test.arrays[0])
    with torch.inference_mode():
        layers = differences(algorithm.expert(images), algorithm.network(images))
        large = [functional.interpolate(one[:, None], (64, 64), mode="bilinear") for one in layers]
    rough = sum(one[:, 0].double().numpy() for one in large)
    expected = np.stack([gaussian_filter(image, 4.0) for image in rough])
    np.testing.assert_allclose(prediction.maps["discrepancy"], expected, atol=1e-5)
    pixels = np.sort(expected.reshape(len(expected), -1), axis=1)
    np.testing.assert_allclose(prediction.scores["maximum"], pixels[:, -1], atol=1e-5)
    np.testing.assert_allclose(prediction.scores["top"], pixels[:, -40:].mean(axis=1), atol=1e-5)
