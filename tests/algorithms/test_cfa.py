"""CFA: its descriptor, loss, gradient and score against NumPy or a dense version."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter

import algorithms.cfa
from algorithms.base import Context
from algorithms.blocks.maps import upsample
from algorithms.cfa import (
    Descriptor,
    certain_distance,
    coordinates,
    hypersphere_loss,
    nearest_distances,
)

WIDE_RESNET = ((256, 64, 64), (512, 32, 32), (1024, 16, 16))


def squared_distances(patches: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """All squared distances (P, M), ascending along the second axis."""
    return np.sort(((patches[:, None] - bank[None]) ** 2).sum(axis=2), axis=1)


@pytest.mark.parametrize(("reduction", "width"), [(1, 1792), (2, 896)])
def test_descriptor_of_wide_resnet(reduction: int, width: int) -> None:
    with torch.device("meta"):
        descriptor = Descriptor(WIDE_RESNET, reduction, 1e-5)
        layers = [torch.empty(2, *shape) for shape in WIDE_RESNET]
        assert descriptor(layers).shape == (2, 4096, width)
    # The convolution with its bias, and the radius; coordinates are no parameters.
    count = sum(parameter.numel() for parameter in descriptor.parameters())
    assert count == 1794 * width + width + 1
    assert set(descriptor.state_dict()) == {"projection.weight", "projection.bias", "radius"}


def test_coordinates() -> None:
    places = coordinates(3, 5).numpy()
    np.testing.assert_allclose(places[0], np.repeat([[-1], [0], [1]], 5, axis=1))
    np.testing.assert_allclose(places[1], np.repeat([[-1, -0.5, 0, 0.5, 1]], 3, axis=0))


def test_descriptor(rng: np.random.Generator) -> None:
    shapes = ((3, 8, 6), (4, 4, 3))
    arrays = [rng.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]
    descriptor = Descriptor(shapes, 1, 1e-5)
    # The mean over 3 x 3 positions, with zeros outside of the map.
    pooled = [uniform_filter(array, (1, 1, 3, 3), mode="constant") for array in arrays]
    coarse = upsample(torch.from_numpy(pooled[1]).flatten(0, 1), (8, 6)).numpy()
    rows, columns = np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 6), indexing="ij")
    places = np.broadcast_to(np.stack([rows, columns]), (2, 2, 8, 6))
    stacked = np.concatenate([pooled[0], coarse.reshape(2, 4, 8, 6), places], axis=1)
    weight = descriptor.projection.weight.detach().numpy()[:, :, 0, 0]
    expected = np.einsum("dc,nchw->nhwd", weight, stacked)
    expected += descriptor.state_dict()["projection.bias"].numpy()
    result = descriptor([torch.from_numpy(array) for array in arrays]).detach()
    np.testing.assert_allclose(result, expected.reshape(2, 48, 7), atol=1e-5)


@pytest.mark.parametrize("block", [7, 1024])
def test_nearest_distances_and_their_gradient(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(algorithms.cfa, "BLOCK", block)
    patches, bank = rng.normal(size=(20, 5)), rng.normal(size=(30, 5))
    tensor = torch.from_numpy(patches).requires_grad_()
    distances = nearest_distances(tensor, torch.from_numpy(bank), 6)
    np.testing.assert_allclose(distances.detach(), squared_distances(patches, bank)[:, :6])
    # The gradient of sum_k w_k |f - c_k|^2 is sum_k 2 w_k (f - c_k).
    weights = rng.normal(size=(20, 6))
    (distances * torch.from_numpy(weights)).sum().backward()
    differences = patches[:, None] - bank[None]
    nearest = np.argsort((differences**2).sum(axis=2), axis=1)[:, :6]
    chosen = np.take_along_axis(differences, nearest[..., None], axis=1)
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad, (2 * weights[..., None] * chosen).sum(axis=1))


@pytest.mark.parametrize("radius", [1e-5, 0.8, 2.0])
def test_loss(rng: np.random.Generator, radius: float) -> None:
    distances = np.sort(rng.uniform(0, 3, (50, 5)), axis=1)
    attraction = np.maximum(0, distances[:, :2] - radius**2).mean()
    repulsion = np.maximum(0, radius**2 - distances[:, 2:] - 0.1).mean()
    assert (repulsion > 0) == (radius > 0.5), "the case must test what it is for"
    result = hypersphere_loss(torch.from_numpy(distances), torch.tensor(radius), 2, 0.1, 1e-3)
    assert float(result) == pytest.approx(1000 * (attraction + repulsion))


def test_loss_is_that_of_all_distances(feature_toy: Any, fit: Any) -> None:
    """A dense version gives the loss and the gradient that the nearest ones give."""
    algorithm = fit("cfa", {"initial_radius": 3.0}, feature_toy.train).algorithm
    batch = [torch.from_numpy(array[:2]) for array in feature_toy.train.arrays]
    parameters = list(algorithm.network.parameters())
    gradients = torch.autograd.grad(algorithm.loss(batch), parameters)
    distances = torch.cdist(algorithm.network(batch).flatten(0, 1), algorithm.bank).square()
    nearest = distances.topk(6, dim=1, largest=False).values
    squared = algorithm.network.radius.square()
    loss = (nearest[:, :3] - squared).clamp(min=0).mean()
    loss = 1000 * (loss + (squared - nearest[:, 3:] - 0.1).clamp(min=0).mean())
    torch.testing.assert_close(algorithm.loss(batch), loss, rtol=1e-3, atol=1e-3)
    for one, other in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))


def test_score(rng: np.random.Generator) -> None:
    squared = np.sort(rng.uniform(0, 9, (40, 3)), axis=1)
    distances = np.sqrt(squared)
    expected = distances[:, 0] * np.exp(-distances[:, 0]) / np.exp(-distances).sum(axis=1)
    np.testing.assert_allclose(certain_distance(torch.from_numpy(squared)), expected)


def test_map_and_scores(feature_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("cfa", {}, feature_toy.train).algorithm
    prediction = predict(algorithm, feature_toy.test)
    with torch.no_grad():
        layers = [torch.from_numpy(array) for array in feature_toy.test.arrays]
        patches = algorithm.network(layers).flatten(0, 1).double().numpy()
    nearest = np.sqrt(squared_distances(patches, algorithm.bank.double().numpy())[:, :3])
    scores = nearest[:, 0] * np.exp(-nearest[:, 0]) / np.exp(-nearest).sum(axis=1)
    scores = scores.reshape(-1, 16, 16)
    large = upsample(torch.from_numpy(scores), (64, 64)).numpy()
    expected = np.stack([gaussian_filter(image, 4.0) for image in large])
    np.testing.assert_allclose(prediction.maps["distance"], expected, rtol=1e-3)
    np.testing.assert_allclose(prediction.scores["maximum"], expected.max(axis=(1, 2)), rtol=1e-3)
    np.testing.assert_allclose(prediction.scores["patch"], scores.max(axis=(1, 2)), rtol=1e-3)


class TestBank:
    @pytest.mark.parametrize("batch", [1, 4, 13])
    def test_is_the_mean_of_the_untrained_descriptors(
        self, feature_toy: Any, build: Any, batch: int
    ) -> None:
        algorithm = build("cfa", {}, feature_toy.train)
        layers = [torch.from_numpy(array) for array in feature_toy.train.arrays]
        expected = algorithm.network(layers).mean(dim=0).detach()
        loader = list(zip(*(layer.split(batch) for layer in layers), strict=True))
        algorithm.train_one_epoch([list(parts) for parts in loader])
        torch.testing.assert_close(algorithm.bank, expected, rtol=1e-4, atol=1e-5)
        assert not algorithm.bank.requires_grad

    def test_stays_while_the_descriptor_learns(self, feature_toy: Any, fit: Any) -> None:
        short, long = (fit("cfa", {}, feature_toy.train, epochs=n).algorithm for n in (1, 3))
        assert torch.equal(short.bank, long.bank)
        weights = [algorithm.network.projection.weight for algorithm in (short, long)]
        assert not torch.allclose(*weights)

    def test_clusters(self, feature_toy: Any, fit: Any, predict: Any) -> None:
        whole = fit("cfa", {}, feature_toy.train).algorithm.bank.numpy()
        reduced = fit("cfa", {"bank_reduction": 4}, feature_toy.train)
        again = fit("cfa", {"bank_reduction": 4}, feature_toy.train)
        bank = reduced.algorithm.bank.numpy()
        assert bank.shape == (64, 60)
        assert reduced.same_model(again)
        # Each centre is the mean of the members that are nearest to it.
        owners = ((whole[:, None] - bank[None]) ** 2).sum(axis=2).argmin(axis=1)
        means = np.stack([whole[owners == centre].mean(axis=0) for centre in range(64)])
        np.testing.assert_allclose(bank, means, atol=1e-4)
        assert np.isfinite(
            predict(reduced.algorithm, feature_toy.test).maps["distance"].numpy()
        ).all()

    def test_must_hold_the_neighbours(self, feature_toy: Any, build: Any) -> None:
        with pytest.raises(ValueError, match="at least 6 centres"):
            build("cfa", {"bank_reduction": 64}, feature_toy.train)


def test_training_lowers_the_loss_and_widens_the_sphere(feature_toy: Any, fit: Any) -> None:
    losses = fit("cfa", {}, feature_toy.train, epochs=6).progress.losses
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]  # the rest is the noise of the toy
    # Under Adam the radius grows by about the learning rate at each of 4 steps an epoch.
    assert losses[-1]["radius"] == pytest.approx(24 * 1e-3, rel=0.05)


def test_channels_may_be_signed_and_of_any_number(build: Any) -> None:
    shapes = ((24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2))
    context = Context((64, 64), shapes, 3, 0, torch.device("cpu"))
    algorithm: Any = algorithms.base.create("cfa", {"width_reduction": 4}, context)
    batch = [torch.randn(3, *shape) for shape in shapes]
    assert np.isfinite(algorithm.train_one_epoch([batch])["loss"])
    assert algorithm.bank.shape == (256, 124)
    assert algorithm.predict(batch).maps["distance"].shape == (3, 64, 64)
