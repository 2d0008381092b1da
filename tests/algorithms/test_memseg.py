"""MemSeg: its attention, memory, masks, loss, score and schedule, each computed another way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.base import Context, create
from algorithms.blocks.difference_unet import CoordinateAttention, DifferenceUnet, spatial_masks
from algorithms.memseg import Hyperparameters, learning_rate, nearest_item
from tests.algorithms.conftest import toy_network

SMALL = {
    "memory_items": 5,
    "decoder_channels": 8,
    "steps": 40,
    "warmup_steps": 4,
    "steps_per_epoch": 4,
    "worst_pixels": 20,
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-x))
    return result


def test_coordinate_attention(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    attention: Any = CoordinateAttention(6).double().eval()
    norm = attention.squeeze[1]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.weight.normal_()
    x = rng.normal(size=(2, 6, 4, 7))
    weights = {key: value.numpy() for key, value in attention.state_dict().items()}

    def squeezed(line: np.ndarray) -> np.ndarray:  # (N, C, L)
        y = np.einsum("oc,ncl->nol", weights["squeeze.0.weight"][:, :, 0, 0], line)
        y += weights["squeeze.0.bias"][:, None]
        y = (y - weights["squeeze.1.running_mean"][:, None]) / math.sqrt(1 + norm.eps)
        y = y * weights["squeeze.1.weight"][:, None] + weights["squeeze.1.bias"][:, None]
        result: np.ndarray = y * np.clip(y + 3, 0, 6) / 6
        return result

    def gate(name: str, line: np.ndarray) -> np.ndarray:
        y = np.einsum("oc,ncl->nol", weights[f"{name}.weight"][:, :, 0, 0], squeezed(line))
        return sigmoid(y + weights[f"{name}.bias"][:, None])

    expected = (
        x * gate("rows", x.mean(axis=3))[..., None] * gate("columns", x.mean(axis=2))[:, :, None]
    )
    with torch.no_grad():
        result = attention(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(("channels", "width"), [(128, 8), (256, 8), (512, 16)])
def test_authors_widths_of_attention(channels: int, width: int) -> None:
    squeeze: Any = CoordinateAttention(channels).squeeze
    assert squeeze[0].out_channels == width


def test_unet_of_resnet18() -> None:
    """Every convolution as in the fact sheet: what goes in and what comes out."""
    with torch.device("meta"):
        network: Any = DifferenceUnet((64, 64, 128, 256, 512), 48)
        layers = [
            torch.empty(2, *shape)
            for shape in ((64, 128, 128), (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8))
        ]
        logits = network(layers, layers[1:-1], (256, 256))
    assert logits.shape == (2, 2, 256, 256)
    assert [up.conv[0].weight.shape[1::-1] for up in [*network.ups, network.finest]] == [
        (512, 256), (512, 128), (256, 64), (128, 48), (96, 48),
    ]  # fmt: skip
    assert network.stem.weight.shape == (48, 64, 3, 3)
    assert [one.weight.shape[1::-1] for one in network.down] == [(128, 64), (256, 128)]
    for fuse, wide in zip(network.fuse, (128, 256, 512), strict=True):
        shapes = [one.weight.shape[1::-1] for one in (fuse.weigh, *fuse.squeeze)]
        assert shapes == [(wide, wide), (wide, wide // 2), (wide // 2, wide // 2)]


def doubled(x: np.ndarray) -> np.ndarray:
    """Bilinear to twice the size, corners onto corners."""
    side = x.shape[-1]
    places = np.linspace(0, side - 1, 2 * side)
    matrix = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))
    result: np.ndarray = matrix @ x @ matrix.T
    return result


def test_spatial_masks(rng: np.random.Generator) -> None:
    fine, middle, coarse = (rng.random((2, c, s, s)) for c, s in ((3, 8), (5, 4), (7, 2)))
    expected = [coarse.mean(axis=1)]
    expected.insert(0, middle.mean(axis=1) * doubled(expected[0]))
    expected.insert(0, fine.mean(axis=1) * doubled(expected[0]))
    result = spatial_masks([torch.from_numpy(one) for one in (fine, middle, coarse)])
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(one[:, 0].numpy(), other)


def test_nearest_item(rng: np.random.Generator) -> None:
    shapes = [(3, 8, 8), (5, 4, 4)]
    layers = [rng.normal(size=(6, *shape)) for shape in shapes]
    bank = [rng.normal(size=(9, *shape)) for shape in shapes]
    distances = np.zeros((6, 9))
    for image in range(6):
        for item in range(9):
            for layer, items in zip(layers, bank, strict=True):
                distances[image, item] += ((layer[image] - items[item]) ** 2).mean()
    result = nearest_item(*([torch.from_numpy(one) for one in part] for part in (layers, bank)))
    np.testing.assert_array_equal(result, distances.argmin(axis=1))


def test_learning_rate() -> None:
    values = Hyperparameters()
    assert learning_rate(0, values) == 1e-4
    assert learning_rate(250, values) == pytest.approx((1e-4 + 3e-3) / 2)
    assert learning_rate(500, values) == 3e-3
    assert learning_rate(500 + 2250, values) == pytest.approx((1e-4 + 3e-3) / 2)
    assert learning_rate(5000, values) == learning_rate(9999, values) == pytest.approx(1e-4)


def test_rate_follows_the_steps(image_toy: Any, fit: Any) -> None:
    algorithm = fit("memseg", SMALL, image_toy.train, epochs=3).algorithm
    expected = learning_rate(11, algorithm.parameters)
    assert algorithm.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_outer_layers_are_trained_alone(image_toy: Any, build: Any, fit: Any) -> None:
    before = build("memseg", SMALL, image_toy.train).backbone.state_dict()
    algorithm = fit("memseg", SMALL, image_toy.train, epochs=2).algorithm
    moved = {
        key.split(".")[0]
        for key, value in algorithm.backbone.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == {"conv1", "bn1", "layer2"}
    kept = fit("memseg", SMALL | {"tune_backbone": False}, image_toy.train, epochs=2).algorithm
    for key, value in kept.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_memory_is_of_the_untrained_network(image_toy: Any, build: Any, fit: Any) -> None:
    fresh = build("memseg", SMALL, image_toy.train)
    algorithm = fit("memseg", SMALL, image_toy.train, epochs=2).algorithm
    with torch.no_grad():
        features = fresh._features(torch.from_numpy(image_toy.train.arrays[0]))[1]
    assert algorithm.bank[0].shape == (5, *features.shape[1:])
    distances = torch.cdist(algorithm.bank[0].flatten(1), features.flatten(1))
    assert (distances.amin(dim=1) < 1e-2).all()
    assert len(distances.argmin(dim=1).unique()) == 5
    assert len(fit("memseg", SMALL | {"memory_items": 30}, image_toy.train).algorithm.bank[0]) == 13


def test_loss(image_toy: Any, fit: Any) -> None:
    algorithm = fit("memseg", SMALL | {"l1_weight": 0.7}, image_toy.train).algorithm
    algorithm.network.eval()
    batch = [torch.from_numpy(image_toy.train.arrays[0][:4])]
    torch.manual_seed(3)
    with torch.no_grad():
        result = float(algorithm.loss(batch))
    torch.manual_seed(3)
    images, masks = algorithm._with_defects(batch[0])
    target = masks.numpy().astype(float)
    with torch.no_grad():
        p = sigmoid(np.diff(algorithm._logits(images).double().numpy(), axis=1)[:, 0])
    # As in the code: each class's term times its label, which is never quite 0 or 1.
    labels = np.clip(np.stack([1 - target, target]), 1e-5, 1 - 1e-5)
    classes = np.stack([1 - p, p])
    focal = -((1 - classes) ** 4 * labels * np.log(classes + 1e-5)).sum(axis=0).mean()
    expected = 0.7 * np.abs(p - target).mean() + 0.4 * focal
    assert masks.any()
    assert result == pytest.approx(expected, rel=1e-3)


def test_every_second_image_has_a_defect(image_toy: Any, build: Any) -> None:
    algorithm = build("memseg", SMALL | {"minimum_opacity": 1.0}, image_toy.train)
    images = torch.rand(8, 3, 64, 64)
    firsts = []
    for seed in range(12):
        torch.manual_seed(seed)
        made, masks = algorithm._with_defects(images)
        changed = (made != images).any(dim=1)
        assert not (changed & ~masks).any(), "nothing changes outside of the mask"
        defective = masks.flatten(1).any(dim=1)
        assert not defective[::2].any() or not defective[1::2].any()
        firsts.append(bool(defective[::2].any()))
    assert len(set(firsts)) == 2


@pytest.mark.parametrize(("foreground", "bright"), [(127.5, True), (127.5, False), ("otsu", True)])
def test_defects_stay_in_the_foreground(
    image_toy: Any, build: Any, foreground: Any, bright: bool
) -> None:
    parameters = SMALL | {"foreground": foreground, "foreground_bright": bright}
    algorithm = build("memseg", parameters, image_toy.train)
    image = torch.full((3, 64, 64), 0.2)
    image[:, 16:48, 8:40] += 0.6
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[16:48, 8:40] = True
    torch.manual_seed(0)
    union = torch.stack([algorithm._defect(image)[1] for _ in range(40)]).any(dim=0)
    wanted = inside if bright else ~inside
    assert not (union & ~wanted).any()
    assert union[wanted].float().mean() > 0.5


def test_map_and_score(image_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("memseg", SMALL | {"feature_scale": 0.5}, image_toy.train).algorithm
    prediction = predict(algorithm, image_toy.test)
    images = torch.from_numpy(image_toy.test.arrays[0])
    bank = [one.numpy() for one in algorithm.bank]
    with torch.no_grad():
        layers = [0.5 * one for one in algorithm.backbone(images)]
        own = layers[1].numpy()
        nearest = [((bank[0] - x) ** 2).mean(axis=(1, 2, 3)).argmin() for x in own]
        differences = torch.from_numpy((own - bank[0][nearest]) ** 2)
        logits = algorithm.segmenter(layers, [differences], (64, 64)).numpy()
    expected = sigmoid(logits[:, 1] - logits[:, 0])
    np.testing.assert_allclose(prediction.maps["probability"].numpy(), expected, atol=1e-5)
    worst = np.sort(expected.reshape(len(images), -1), axis=1)[:, -20:].mean(axis=1)
    np.testing.assert_allclose(prediction.scores["worst"].numpy(), worst, atol=1e-5)


def test_two_layers_are_too_few() -> None:
    context = Context((64, 64), ((3, 64, 64),), 5, 0, torch.device("cpu"))
    context = replace(context, backbone=lambda *layers: toy_network(*layers or (0, 1)))
    with pytest.raises(ValueError, match="layers to remember"):
        create("memseg", SMALL, context)
