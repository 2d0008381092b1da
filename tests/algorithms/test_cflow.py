"""CFLOW-AD: loss, schedule, fibres and map against their formulas; flows know their determinant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional

import algorithms.cflow
from algorithms.blocks.positions import position_encoding
from algorithms.cflow import (
    CFlow,
    Hyperparameters,
    build_flow,
    learning_rate,
    mean_log_likelihood,
    to_fibres,
)

SMALL = {"blocks": 2, "fibre_batch": 64, "condition_channels": 8, "sub_epochs": 1}


def test_parameters_of_wide_resnet() -> None:
    # The rotations are no parameters, and slow to draw.
    hard = Hyperparameters(permute_soft=False)
    with torch.device("meta"):
        flows = [build_flow(channels, hard) for channels in (512, 1024, 2048)]
    trained = [sum(part.numel() for part in flow.parameters()) for flow in flows]
    assert sum(trained) == pytest.approx(81.6e6, abs=5e4)
    # Two linear layers and a scale and an offset per channel, eight times.
    assert trained[0] == 8 * (384 * 768 + 768 + 768 * 512 + 512 + 2 * 512)


def reference_rate(epoch: int, step: int, steps: int) -> float:
    """The authors' rules for sub-epoch ``epoch``, one after the other, in their terms."""
    lr, meta, sub = 2e-4, epoch // 8, epoch % 8
    eta_min = lr * 0.1**3
    if meta < 2:
        warm_to = eta_min + (lr - eta_min) * (1 + np.cos(np.pi * 2 / 25)) / 2
        part = (step + sub * steps + meta * steps * 8) / (2 * steps * 8)
        return lr / 10 + part * (warm_to - lr / 10)
    return eta_min + (lr - eta_min) * (1 + np.cos(np.pi * meta / 25)) / 2


def test_learning_rate() -> None:
    for epoch in range(200):
        for step in range(7):
            rate = learning_rate((epoch + step / 7) / 8, Hyperparameters())
            assert rate == pytest.approx(reference_rate(epoch, step, 7), rel=1e-9)
    assert learning_rate(0, Hyperparameters()) == pytest.approx(2e-5)
    assert [learning_rate(late, Hyperparameters()) for late in (25, 40)] == pytest.approx(
        [2e-7] * 2
    )


def test_log_likelihood(rng: np.random.Generator) -> None:
    latent, log_determinant = rng.normal(size=(5, 6)), rng.normal(size=5)
    expected = (norm.logpdf(latent).sum(axis=1) + log_determinant) / 6
    result = mean_log_likelihood(torch.from_numpy(latent), torch.from_numpy(log_determinant))
    np.testing.assert_allclose(result, expected)


def test_log_determinant_of_each_fibre() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    flow = build_flow(5, Hyperparameters(blocks=3, condition_channels=4)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.5)
    fibres, positions = torch.randn(4, 5).double(), torch.randn(4, 4).double()
    _, log_determinants = flow(fibres, [positions])

    def latent(fibre: Tensor, position: Tensor) -> Tensor:
        return flow(fibre[None], [position[None]])[0][0]

    for *inputs, log_determinant in zip(fibres, positions, log_determinants, strict=True):
        jacobian = torch.autograd.functional.jacobian(latent, tuple(inputs))[0]
        expected = torch.linalg.slogdet(jacobian).logabsdet
        assert abs(float(expected)) > 0.1
        torch.testing.assert_close(log_determinant, expected, rtol=1e-6, atol=1e-6)


def test_loss(feature_toy: Any, build: Any) -> None:
    algorithm = build("cflow", SMALL, feature_toy.train)
    fibres, positions = torch.randn(9, 20), torch.randn(9, 8)
    latent, log_determinant = algorithm.flows[1](fibres, [positions])
    likelihood = (
        norm.logpdf(latent.detach().double()).sum(axis=1)
        + log_determinant.detach().double().numpy()
    ) / 20
    expected = np.mean(-np.log(1 / (1 + np.exp(-likelihood))))
    assert algorithm.loss([fibres, positions], 1).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("batch", "sizes"), [(30, [30] * 8), (64, [80, 80, 80]), (500, [240])])
def test_fibre_batches(feature_toy: Any, build: Any, batch: int, sizes: list[int]) -> None:
    """Every fibre comes once, with its own position, in an order that mixes images."""
    algorithm = build("cflow", SMALL | {"fibre_batch": batch}, feature_toy.train)
    maps = torch.arange(15 * 20 * 16).reshape(15, 20, 4, 4).float()
    algorithm.positions[2] = position_encoding(8, (4, 4)).flatten(1).T
    torch.manual_seed(0)
    parts = [*algorithm._fibre_batches(2, maps)]
    assert [len(fibres) for fibres, _ in parts] == sizes
    assert [len(positions) for _, positions in parts] == sizes
    seen: dict[tuple[int, int, int], int] = {}
    for fibre, position in zip(
        *(torch.cat(part) for part in zip(*parts, strict=True)), strict=True
    ):
        image, cell = divmod(int(fibre[0]), 20 * 16)
        row, column = divmod(cell, 4)
        torch.testing.assert_close(fibre, maps[image, :, row, column])
        torch.testing.assert_close(position, position_encoding(8, (4, 4))[:, row, column])
        seen[image, row, column] = len(seen)
    assert len(seen) == 240
    first = list(seen)[: sizes[0]]
    assert len({image for image, _, _ in first}) > 5
    torch.manual_seed(1)
    assert not torch.equal(next(iter(algorithm._fibre_batches(2, maps)))[0], parts[0][0])


def test_to_fibres(rng: np.random.Generator) -> None:
    maps = rng.normal(size=(2, 3, 4, 5))
    fibres = to_fibres(torch.from_numpy(maps)).numpy()
    np.testing.assert_array_equal(fibres[1 * 20 + 2 * 5 + 3], maps[1, :, 2, 3])


def test_training_step(feature_toy: Any, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's weights move as with an Adam of their own, at the schedule's rates."""
    settings = SMALL | {"meta_epochs": 4, "warmup_epochs": 1}
    algorithm = build("cflow", settings, feature_toy.train)
    other = build("cflow", settings, feature_toy.train)
    other.load_state(algorithm.state())
    optimizers = [torch.optim.Adam(flow.parameters(), lr=1.0) for flow in other.flows]
    batches = [
        [torch.from_numpy(array[start : start + 4]) for array in feature_toy.train.arrays]
        for start in (0, 4, 8)
    ]
    totals = []
    for epoch in range(2):
        torch.manual_seed(epoch)
        losses = algorithm.train_one_epoch(batches)
        torch.manual_seed(epoch)
        for number, batch in enumerate(batches):
            rate = learning_rate(epoch + number / 3, other.parameters)
            for layer, optimizer in enumerate(optimizers):
                optimizer.param_groups[0]["lr"] = rate
                for fibres, positions in other._fibre_batches(layer, batch[layer]):
                    loss = other.loss([fibres, positions], layer)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    totals.append(loss.item() * len(fibres) / len(other.positions[layer]) / 36)
    for one, two in zip(algorithm.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert losses["loss"] == pytest.approx(sum(totals[len(totals) // 2 :]), rel=1e-4)


def likelihood(flow: Any, maps: np.ndarray) -> Tensor:
    """exp(l) at each position of maps (N, C, H, W), (N, 1, H, W)."""
    count, channels, height, width = maps.shape
    rows = maps.transpose(0, 2, 3, 1).reshape(-1, channels)
    code = position_encoding(8, (height, width)).flatten(1).T.repeat(count, 1)
    with torch.no_grad():
        z, log_determinant = flow(torch.from_numpy(rows).float(), [code])
    log = norm.logpdf(z.double()).sum(axis=1) + log_determinant.double().numpy()
    return torch.from_numpy(np.exp(log / channels).reshape(count, 1, height, width))


def test_map_and_score(feature_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("cflow", SMALL, feature_toy.train).algorithm
    prediction = predict(algorithm, feature_toy.test)
    expected = np.zeros((len(feature_toy.test), 64, 64))
    for flow, train, test in zip(
        algorithm.flows, feature_toy.train.arrays, feature_toy.test.arrays, strict=True
    ):
        part = likelihood(flow, test) / likelihood(flow, train).max()
        large = functional.interpolate(part, (64, 64), mode="bilinear", align_corners=True)
        expected += 1 - large[:, 0].numpy()
    maps = prediction.maps["likelihood"].numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(prediction.scores["maximum"], maps.max(axis=(1, 2)))


def test_position_decides(feature_toy: Any, build: Any) -> None:
    algorithm: CFlow = build("cflow", SMALL, feature_toy.train)
    maps = [torch.ones(2, *shape) for shape in algorithm.context.shapes]
    with torch.no_grad():
        for values in algorithm._log_likelihoods(maps):
            assert torch.equal(values[0], values[1])
            assert values[0].unique().numel() > 0.9 * values[0].numel()


def test_training_raises_the_likelihood(feature_toy: Any, fit: Any) -> None:
    quick = SMALL | {"learning_rate": 2e-3, "warmup_epochs": 0}
    losses = fit("cflow", quick, feature_toy.train, epochs=5).progress.losses
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]


def test_configuration_trains_as_long_as_the_schedule() -> None:
    root = Path(algorithms.cflow.__file__).parents[1]
    config = yaml.safe_load((root / "params/algorithms/cflow.yaml").read_text("utf-8"))
    for variant in ({}, *config["variants"].values()):
        chosen = config["parameters"] | variant.get("parameters", {})
        epochs = variant.get("epochs", config["epochs"])
        assert epochs == chosen["meta_epochs"] * chosen["sub_epochs"]
