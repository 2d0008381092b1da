"""SimpleNet: its networks, loss, optimiser, schedule and score, each computed another way."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from torch import Tensor, nn

from algorithms.base import Context, create
from algorithms.blocks.maps import upsample
from algorithms.blocks.patches import embed
from algorithms.simplenet import cosine_factor, linear, truncated_loss

SMALL = {"pretrain_dimension": None, "target_dimension": None, "hidden_dimension": 16}


def test_networks_of_wide_resnet() -> None:
    context = Context((32, 32), ((512, 4, 4), (1024, 2, 2)), 1, 0, torch.device("cpu"))
    algorithm: Any = create("simplenet", {}, context)
    counts = [
        [parameter.numel() for parameter in network.parameters()]
        for network in (algorithm.projection, algorithm.discriminator)
    ]
    # Weight and bias; hidden layer with bias, scale and shift of its norm, output without bias.
    assert counts == [[1536**2, 1536], [1536 * 1024, 1024, 1024, 1024, 1024]]
    assert algorithm.discriminator[2].negative_slope == 0.2
    layers = [torch.rand(2, 512, 4, 4), torch.rand(2, 1024, 2, 2)]
    assert algorithm._patches(layers).shape == (32, 1536)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = linear(300, 100)
    weights = layer.weight.detach()
    assert float(weights.std()) == pytest.approx(math.sqrt(2 / 400), rel=0.05)
    assert float(weights.abs().max()) > 3 * math.sqrt(2 / 400), "normal, not uniform"
    assert layer.bias.abs().max() <= 1 / math.sqrt(300)


def test_loss(rng: np.random.Generator) -> None:
    normal, noisy = rng.normal(0, 1, (2, 30, 1))
    expected = np.maximum(0, 0.7 - normal).mean() + np.maximum(0, 0.7 + noisy).mean()
    result = truncated_loss(torch.from_numpy(normal), torch.from_numpy(noisy), 0.7)
    assert float(result) == pytest.approx(expected)


def discriminate(network: nn.Sequential, patches: np.ndarray, training: bool) -> np.ndarray:
    """D of patches (P, D) in NumPy, from the network's parameters."""
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}
    hidden = patches @ state["0.weight"].T + state["0.bias"]
    mean, variance = state["1.running_mean"], state["1.running_var"]
    if training:
        mean, variance = hidden.mean(axis=0), hidden.var(axis=0)
    hidden = (hidden - mean) / np.sqrt(variance + 1e-5) * state["1.weight"] + state["1.bias"]
    return np.where(hidden > 0, hidden, 0.2 * hidden) @ state["3.weight"][0]


def project(layer: nn.Linear, patches: Tensor) -> np.ndarray:
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    projected: np.ndarray = patches.double().numpy() @ weight.T + bias
    return projected


def test_loss_of_a_batch(feature_toy: Any, build: Any) -> None:
    algorithm = build("simplenet", {**SMALL, "noise": 0.4}, feature_toy.train)
    batch = [torch.from_numpy(array[:3]) for array in feature_toy.train.arrays]
    patches = embed(batch, algorithm.kernels).flatten(0, 1)
    normal = project(algorithm.projection, patches)
    torch.manual_seed(3)
    noisy = normal + 0.4 * torch.randn(normal.shape).double().numpy()
    # Both halves share the statistics of batch norm.
    logits = discriminate(algorithm.discriminator, np.concatenate([normal, noisy]), training=True)
    first, second = np.split(logits, 2)
    expected = np.maximum(0, 0.5 - first).mean() + np.maximum(0, 0.5 + second).mean()
    torch.manual_seed(3)
    assert float(algorithm.loss(batch).detach()) == pytest.approx(expected, rel=1e-4)


def test_one_optimiser_is_two(feature_toy: Any, build: Any) -> None:
    """AdamW for the projection, Adam for the discriminator, to the last bit."""
    rates = {"projection_decay": 0.3, "discriminator_decay": 0.2, "noise": 0.4}
    algorithm = build("simplenet", {**SMALL, **rates}, feature_toy.train)
    twin = copy.deepcopy(algorithm)
    optimizers = [
        torch.optim.AdamW(twin.projection.parameters(), lr=1e-4, weight_decay=0.3),
        torch.optim.Adam(twin.discriminator.parameters(), lr=2e-4, weight_decay=0.2),
    ]
    batch = [torch.from_numpy(array[:4]) for array in feature_toy.train.arrays]
    start = {key: value.clone() for key, value in algorithm.state().items()}
    torch.manual_seed(1)
    algorithm.train_one_epoch([batch] * 3)
    torch.manual_seed(1)
    for _ in range(3):
        twin.network.zero_grad()
        twin.loss(batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    for key, value in algorithm.state().items():
        assert torch.equal(value, twin.state()[key]), key
        assert not torch.equal(value, start[key]), key


def test_cosine_is_torchs(feature_toy: Any, build: Any) -> None:
    parameters = {**SMALL, "cosine_epochs": 6}
    algorithm = build("simplenet", parameters, feature_toy.train)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=2e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6, eta_min=0.4 * 2e-4)
    batch = [torch.from_numpy(array[:1]) for array in feature_toy.train.arrays]
    for epoch in range(8):
        algorithm.train_one_epoch([batch])
        rates = [group["lr"] for group in algorithm.optimizer.param_groups]
        assert rates == [1e-4, pytest.approx(optimizer.param_groups[0]["lr"])], epoch
        optimizer.step()
        schedule.step()
    assert cosine_factor(0, 156, 0.4) == 1
    assert cosine_factor(156, 156, 0.4) == pytest.approx(0.4)


def test_rate_is_constant_by_default(feature_toy: Any, fit: Any) -> None:
    algorithm = fit("simplenet", SMALL, feature_toy.train, epochs=3).algorithm
    assert [group["lr"] for group in algorithm.optimizer.param_groups] == [1e-4, 2e-4]


def test_resumed_training_goes_on_in_the_schedule(
    feature_toy: Any, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {**SMALL, "cosine_epochs": 4, "discriminator_rate": 0.01}
    straight = fit("simplenet", parameters, feature_toy.train, epochs=4)
    # A checkpoint after each epoch; the last leg leaves that of the third.
    monkeypatch.setattr("stages.trainer.CHECKPOINT_SECONDS", -1.0)
    fit("simplenet", parameters, feature_toy.train, epochs=4, folder=tmp_path)
    resumed = fit("simplenet", parameters, feature_toy.train, epochs=4, folder=tmp_path)
    assert resumed.progress.resumed == 1
    assert resumed.algorithm.epoch == straight.algorithm.epoch == 4
    assert resumed.same_model(straight)


def test_map_and_score(feature_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("simplenet", SMALL, feature_toy.train, epochs=2).algorithm
    prediction = predict(algorithm, feature_toy.test)
    # One bin per channel: means over 3 x 3 positions, zeros outside, on the finest grid.
    layers = [
        upsample(
            torch.from_numpy(uniform_filter(array, (1, 1, 3, 3), mode="constant")).flatten(0, 1),
            (16, 16),
        ).reshape(-1, array.shape[1], 16, 16)
        for array in feature_toy.test.arrays
    ]
    patches = torch.cat(layers, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    projected = project(algorithm.projection, patches)
    logits = discriminate(algorithm.discriminator, projected, training=False)
    scores = -logits.reshape(-1, 16, 16)
    large = upsample(torch.from_numpy(scores), (64, 64)).numpy()
    expected = np.stack([gaussian_filter(image, 4.0) for image in large])
    np.testing.assert_allclose(prediction.maps["discriminator"], expected, atol=1e-4)
    np.testing.assert_allclose(
        prediction.scores["discriminator"], scores.max(axis=(1, 2)), atol=1e-4
    )


def test_both_networks_train_after_an_evaluation(feature_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("simplenet", SMALL, feature_toy.train).algorithm
    predict(algorithm, feature_toy.clean)
    assert not algorithm.discriminator.training
    mean = algorithm.discriminator[1].running_mean.clone()
    algorithm.train_one_epoch([[torch.from_numpy(array) for array in feature_toy.train.arrays]])
    assert algorithm.projection.training
    assert algorithm.discriminator.training
    assert not torch.equal(algorithm.discriminator[1].running_mean, mean)


def test_training_lowers_the_loss(feature_toy: Any, fit: Any) -> None:
    parameters = {**SMALL, "noise": 0.5, "discriminator_rate": 0.002}
    losses = fit("simplenet", parameters, feature_toy.train, epochs=15).progress.losses
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]
