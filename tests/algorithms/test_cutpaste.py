"""CutPaste: its classifiers, densities, loss, schedule and maps, each computed another way."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from torch import nn

from algorithms.cutpaste import (
    Hyperparameters,
    cosine_rate,
    draw_anew,
    fit_gaussian,
    grid,
    mahalanobis,
    spread,
)

SMALL = {
    "pretrained": True,
    "frozen_steps": 0,
    "head_widths": (16,),
    "crop": 32,
    "steps": 12,
    "steps_per_epoch": 3,
    "density_crops": 4,
    "stride": 12,
    "sigma": 6.0,
}


def test_gaussian_is_ledoit_and_wolfs(rng: np.random.Generator) -> None:
    embeddings = rng.normal(size=(20, 30)) * rng.uniform(0.1, 3, 30) + 5  # fewer than dimensions
    tests = rng.normal(size=(7, 30)) + 5
    covariance, shrinkage = ledoit_wolf(embeddings)
    assert 0 < shrinkage < 1
    mean, precision = embeddings.mean(axis=0), np.linalg.inv(covariance)
    expected = [math.sqrt((x - mean) @ precision @ (x - mean)) for x in tests]
    gaussian = fit_gaussian(torch.from_numpy(embeddings))
    result = mahalanobis(torch.from_numpy(tests), *gaussian).numpy()
    np.testing.assert_allclose(result, expected)


def test_schedule_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 50)
    for step in range(50):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cosine_rate(step, 50, 0.03)), step
        optimizer.step()
        schedule.step()
    assert cosine_rate(50, 50, 0.03) == cosine_rate(70, 50, 0.03) == 0


def test_grid_reaches_the_border() -> None:
    assert grid(256, 64, 4) == list(range(0, 193, 4))
    assert grid(70, 16, 16) == [0, 16, 32, 48, 54]
    assert grid(64, 64, 4) == [0]


def test_spread(rng: np.random.Generator) -> None:
    rows, columns, size, sigma = grid(30, 8, 3), grid(25, 8, 6), 8, 2.5
    scores = rng.normal(size=(len(rows), len(columns)))
    total, weight = np.zeros((30, 25)), np.zeros((30, 25))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            for y in range(top, top + size):
                for x in range(left, left + size):
                    squares = (y - top - 3.5) ** 2 + (x - left - 3.5) ** 2
                    total[y, x] += scores[i, j] * math.exp(-squares / (2 * sigma**2))
                    weight[y, x] += math.exp(-squares / (2 * sigma**2))
    down, across = (
        spread(side, size, starts, sigma).double().numpy()
        for side, starts in ((30, rows), (25, columns))
    )
    np.testing.assert_allclose(down @ scores @ across.T, total / weight, rtol=1e-4, atol=1e-6)


def test_all_of_an_image_is_covered_at_any_stride() -> None:
    values = Hyperparameters()
    for stride in (4, 16, 32, 64):
        weights = spread(256, 64, grid(256, 64, stride), values.sigma)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(256))


def test_weights_are_drawn_anew() -> None:
    network: Any = nn.Sequential(nn.Conv2d(64, 128, 3, bias=False), nn.BatchNorm2d(128))
    nn.init.constant_(network[0].weight, 7)
    nn.init.constant_(network[1].weight, 7)
    network[1].running_mean.fill_(7)
    draw_anew(network)
    # He et al.: by the number of outputs.
    assert float(network[0].weight.detach().std()) == pytest.approx(
        math.sqrt(2 / (128 * 9)), rel=0.02
    )
    assert (network[1].weight == 1).all()
    assert (network[1].running_mean == 0).all()


def test_pretrained_or_not(image_toy: Any, build: Any) -> None:
    torch.manual_seed(0)
    pretrained = build("cutpaste", SMALL, image_toy.train)
    own = pretrained.context.backbone().state_dict()
    for part in ("image", "crop"):
        weights = pretrained.network[part].backbone.state_dict()
        assert all(torch.equal(weights[key], own[key]) for key in own)
    fresh = build("cutpaste", SMALL | {"pretrained": False}, image_toy.train)
    one, other = (fresh.network[part].backbone.conv1[0].weight for part in ("image", "crop"))
    assert not torch.equal(one, own["conv1.0.weight"])
    assert not torch.equal(one, other)


def test_head(image_toy: Any, build: Any) -> None:
    parameters = SMALL | {"head_widths": Hyperparameters.head_widths}
    head = build("cutpaste", parameters, image_toy.train).network["image"].head
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [layer.out_features for layer in head[::3]] == [512, 128, 3]


def test_a_pretrained_backbone_waits(image_toy: Any, build: Any, fit: Any) -> None:
    parameters = SMALL | {"frozen_steps": 3}
    before = dict(build("cutpaste", parameters, image_toy.train).network.named_parameters())

    def moved(epochs: int) -> set[str]:
        network = fit("cutpaste", parameters, image_toy.train, epochs=epochs).algorithm.network
        pairs = ((name.split(".")[1], name, value) for name, value in network.named_parameters())
        return {
            part
            for part, name, value in pairs
            if part == "backbone" and not torch.equal(value, before[name])
        }

    assert moved(1) == set()
    assert moved(2) == {"backbone"}


def test_rate_follows_the_steps(image_toy: Any, fit: Any) -> None:
    algorithm = fit("cutpaste", SMALL, image_toy.train, epochs=2).algorithm
    assert algorithm.optimizer.param_groups[0]["lr"] == pytest.approx(cosine_rate(5, 12, 0.03))


def test_loss(image_toy: Any, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = build("cutpaste", SMALL, image_toy.train)
    monkeypatch.setattr("algorithms.cutpaste.cut_paste", lambda image: (image * 0.5, None))
    monkeypatch.setattr("algorithms.cutpaste.scar", lambda image: (1 - image, None))
    algorithm.jitter = nn.Identity()
    algorithm._random_crop = lambda image: image[:, 8:40, 16:48]
    images = torch.from_numpy(image_toy.train.arrays[0][:4])
    algorithm.context = replace(algorithm.context, mean=(0.3,) * 3, std=(0.2,) * 3)
    pixels = images * 0.2 + 0.3
    expected = 0.0
    with torch.no_grad():
        for name, views in (("image", pixels), ("crop", pixels[:, :, 8:40, 16:48])):
            # All of a class together: batch norm must see the three classes in one batch.
            made = torch.cat([views, views * 0.5, 1 - views])
            classifier = algorithm.network[name]
            logits = classifier.head(classifier.embed((made - 0.3) / 0.2)).double().numpy()
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            expected -= np.log(p[np.arange(12), np.repeat(np.arange(3), 4)]).mean()
        assert float(algorithm.loss([images])) == pytest.approx(expected, rel=1e-4)


def test_crops_and_images_have_three_classes(image_toy: Any, build: Any) -> None:
    algorithm = build("cutpaste", SMALL, image_toy.train)
    image = torch.rand(3, 64, 64)
    for one in (image, algorithm._random_crop(image)):
        same, patch, scar = algorithm._three(one)
        assert same.shape == patch.shape == scar.shape == one.shape
        assert not torch.equal(same, patch)
        assert not torch.equal(same, scar)
        # Most of each is the same, jittered as the original is.
        assert ((same - patch).abs().sum(dim=0) > 0).float().mean() < 0.3
    corners = set()
    for _ in range(300):
        crop = algorithm._random_crop(torch.arange(64.0 * 64).reshape(1, 64, 64))
        corners.add(divmod(int(crop[0, 0, 0]), 64))
    assert min(corners)[0] == 0 and max(corners)[0] == 32
    assert {left for _, left in corners} <= set(range(33))


def test_one_optimiser_is_two(image_toy: Any, build: Any) -> None:
    """The two classifiers share nothing: one optimiser for each moves them the same."""
    algorithm = build("cutpaste", SMALL, image_toy.train)
    twin = copy.deepcopy(algorithm)
    optimizers = [
        torch.optim.SGD(twin.network[part].parameters(), 0.03, momentum=0.9, weight_decay=3e-5)
        for part in ("image", "crop")
    ]
    batch = [torch.from_numpy(image_toy.train.arrays[0][:4])]
    torch.manual_seed(1)
    algorithm.train_one_epoch([batch])
    torch.manual_seed(1)
    twin.network.train()
    twin.network.requires_grad_(True)
    for step in range(3):
        rows = torch.randint(4, (4,))
        twin.network.zero_grad()
        twin.loss([batch[0][rows]]).backward()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = cosine_rate(step, 12, 0.03)
            optimizer.step()
    for key, value in algorithm.network.state_dict().items():
        assert torch.equal(value, twin.network.state_dict()[key]), key


def test_map_and_score(image_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("cutpaste", SMALL, image_toy.train).algorithm
    prediction = predict(algorithm, image_toy.test)

    def embed(name: str, image: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            maps = algorithm.network[name].backbone(image[None])[-1][0].double().numpy()
        vector = maps.mean(axis=(1, 2))
        result: np.ndarray = vector / np.linalg.norm(vector)
        return result

    def distance(name: str, image: torch.Tensor) -> float:
        mean, whitening = (one.double().numpy() for one in algorithm.densities[name])
        offset = embed(name, image) - mean
        return math.sqrt(offset @ whitening @ whitening.T @ offset)

    train = torch.from_numpy(image_toy.train.arrays[0])
    mean = np.mean([embed("image", image) for image in train], axis=0)
    np.testing.assert_allclose(algorithm.densities["image"][0], mean, atol=1e-5)
    images = torch.from_numpy(image_toy.test.arrays[0])
    scores = [distance("image", image) for image in images]
    np.testing.assert_allclose(prediction.scores["image"].numpy(), scores, rtol=2e-3)
    places = [0, 12, 24, 32]
    expected, weights = np.zeros((64, 64)), np.zeros((64, 64))
    axis = np.arange(32) - 15.5
    bell = np.exp(-(axis[:, None] ** 2 + axis**2) / 72)
    for top in places:
        for left in places:
            where = slice(top, top + 32), slice(left, left + 32)
            expected[where] += bell * distance("crop", images[2][:, where[0], where[1]])
            weights[where] += bell
    result = prediction.maps["crops"][2].numpy()
    np.testing.assert_allclose(result, expected / weights, rtol=2e-3)
    assert prediction.scores["crops"][2] == prediction.maps["crops"][2].max()


def test_crops_must_fit(image_toy: Any, build: Any) -> None:
    with pytest.raises(ValueError, match="no crops of this size"):
        build("cutpaste", SMALL | {"crop": 65}, image_toy.train)
