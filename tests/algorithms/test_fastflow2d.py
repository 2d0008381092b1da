"""FastFlow: the flow inverts and knows its determinant; loss and map follow their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from algorithms.fastflow2d import (
    Hyperparameters,
    build_flow,
    negative_log_likelihood,
    probability,
)

TINY = [(4, 2, 2), (5, 2, 3)]  # an even and an odd number of channels


def stirred_flow(shape: tuple[int, int, int]) -> Any:
    """A flow in float64 whose every parameter matters (new ones hardly couple or scale)."""
    torch.manual_seed(3)
    np.random.seed(3)
    flow = build_flow(shape, Hyperparameters(flow_steps=3)).double()
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "subnet" in name:
                parameter.mul_(3)
            else:
                parameter.add_(torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("shape", TINY)
def test_flow_inverts(shape: tuple[int, int, int]) -> None:
    flow = stirred_flow(shape)
    features = torch.randn(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        latent, log_determinant = flow(features)
        back, inverse = flow(latent, rev=True)
    assert not torch.allclose(latent, features, atol=0.1)
    torch.testing.assert_close(back, features)
    torch.testing.assert_close(inverse, -log_determinant)


@pytest.mark.parametrize("shape", TINY)
def test_log_determinant_is_the_jacobians(shape: tuple[int, int, int]) -> None:
    flow = stirred_flow(shape)
    features = torch.randn(2, *shape, dtype=torch.float64)
    _, log_determinants = flow(features)

    def flat(values: Tensor) -> Tensor:
        latent: Tensor = flow(values.reshape(1, *shape))[0]
        return latent.flatten()

    for image, log_determinant in zip(features, log_determinants, strict=True):
        jacobian = torch.autograd.functional.jacobian(flat, image.flatten())
        expected = torch.linalg.slogdet(jacobian).logabsdet
        assert abs(float(expected)) > 0.1
        torch.testing.assert_close(log_determinant, expected)


def kernel_sizes(parameters: Hyperparameters) -> list[int]:
    flow = build_flow((4, 2, 2), parameters)
    return [block.subnet[0].kernel_size[0] for block in flow]


def test_subnets_alternate() -> None:
    assert kernel_sizes(Hyperparameters(flow_steps=4)) == [3, 1, 3, 1]
    assert kernel_sizes(Hyperparameters(flow_steps=3, conv3x3_only=True)) == [3, 3, 3]


@pytest.mark.parametrize(
    ("shape", "millions"),
    [((256, 64, 64), 1.973), ((512, 32, 32), 7.879), ((1024, 16, 16), 31.486)],
)
def test_parameters_of_wide_resnet(shape: tuple[int, int, int], millions: float) -> None:
    with torch.device("meta"):
        flow = build_flow(shape, Hyperparameters())
    trained = sum(part.numel() for part in flow.parameters() if part.requires_grad)
    assert trained == pytest.approx(millions * 1e6, abs=500)


def test_loss(rng: np.random.Generator) -> None:
    latent, log_determinant = rng.normal(size=(3, 4, 2, 2)), rng.normal(size=3)
    # -log N(z; 0, 1) per image without its constant, minus log|det J|, the mean over images.
    expected = np.mean([np.sum(z**2) / 2 - d for z, d in zip(latent, log_determinant, strict=True)])
    result = negative_log_likelihood(torch.from_numpy(latent), torch.from_numpy(log_determinant))
    assert float(result) == pytest.approx(expected)


def test_loss_sums_over_layers(feature_toy: Any, build: Any) -> None:
    algorithm = build("fastflow2d", {"flow_steps": 2}, feature_toy.train)
    batch = [torch.from_numpy(array[:3]) for array in feature_toy.train.arrays]
    latents = [
        flow(norm(layer))
        for flow, norm, layer in zip(algorithm.flows, algorithm.norms, batch, strict=True)
    ]
    expected = sum((z.square().sum((1, 2, 3)) / 2 - d).mean() for z, d in latents)
    torch.testing.assert_close(algorithm.loss(batch), expected)


def test_probability(rng: np.random.Generator) -> None:
    latent = rng.normal(0, 2, (2, 6, 3, 5))
    result = probability(torch.from_numpy(latent)).numpy()
    assert result.shape == (2, 3, 5)
    np.testing.assert_allclose(result, np.exp(-(latent**2).mean(axis=1) / 2))
    assert (result > 0).all()
    assert (result <= 1).all()
    assert (probability(torch.zeros(1, 6, 2, 2)) == 1).all()


def test_map_and_scores(feature_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("fastflow2d", {"flow_steps": 2}, feature_toy.train).algorithm
    prediction = predict(algorithm, feature_toy.test)
    expected = np.zeros((len(feature_toy.test), 64, 64))
    for flow, norm, array in zip(
        algorithm.flows, algorithm.norms, feature_toy.test.arrays, strict=True
    ):
        with torch.no_grad():
            latent, _ = flow(norm(torch.from_numpy(array)))
        likelihood = torch.exp(-latent.square().mean(1, keepdim=True) / 2)
        large = functional.interpolate(likelihood, (64, 64), mode="bilinear")
        expected -= large[:, 0].numpy() / 3
    maps = prediction.maps["probability"].numpy()
    np.testing.assert_allclose(maps, expected, rtol=1e-4)
    np.testing.assert_allclose(prediction.scores["maximum"], maps.max(axis=(1, 2)))
    np.testing.assert_allclose(prediction.scores["mean"], maps.mean(axis=(1, 2)), rtol=1e-5)
    assert (maps >= -1).all()
    assert (maps < 0).all()


def test_training_maximises_the_likelihood(feature_toy: Any, fit: Any) -> None:
    losses = fit("fastflow2d", {"flow_steps": 2}, feature_toy.train, epochs=8).progress.losses
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]


def test_permutations_follow_the_seed(feature_toy: Any, fit: Any) -> None:
    # They come from NumPy's global generator: only a seeded one makes runs repeatable.
    permutations = [
        fit("fastflow2d", {}, feature_toy.train, seed=seed).algorithm.flows[0][0].order
        for seed in (0, 0, 1)
    ]
    assert torch.equal(permutations[0], permutations[1])
    assert not torch.equal(permutations[0], permutations[2])
