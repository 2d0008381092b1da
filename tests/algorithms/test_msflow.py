"""MSFlow: the fusion flow inverts and knows its determinant; schedule, maps, scores by formula."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.blocks.fusion_flow import Exchange, FusionFlow, pool
from algorithms.msflow import (
    Hyperparameters,
    additive_map,
    distance_to_best,
    image_scores,
    learning_rate,
    log_likelihood,
    negative_log_likelihood,
    parallel_flow,
)

SMALL = {"blocks": (1, 1, 1), "condition_channels": 8}
SHAPES = [[(4, 4, 4), (6, 2, 2)], [(5, 3, 5), (3, 2, 3), (2, 1, 2)], [(5, 2, 3)]]


def stir(module: Any) -> Any:
    """Make every parameter matter (new subnets hardly couple), in float64."""
    with torch.no_grad():
        for parameter in module.double().parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def seeded(shapes: list[tuple[int, int, int]], batch: int) -> tuple[FusionFlow, list[Tensor]]:
    torch.manual_seed(3)
    np.random.seed(3)
    fusion = stir(FusionFlow([shape[0] for shape in shapes], 1.9))
    return fusion, [torch.randn(batch, *shape, dtype=torch.float64) for shape in shapes]


def log_abs_determinant(function: Any, features: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(function, features.flatten())
    return torch.linalg.slogdet(jacobian).logabsdet


@pytest.mark.parametrize("shapes", SHAPES)
def test_fusion_inverts(shapes: list[tuple[int, int, int]]) -> None:
    fusion, features = seeded(shapes, 3)
    with torch.no_grad():
        latents, _ = fusion(features)
        back = fusion.inverse(latents)
    for before, latent, after in zip(features, latents, back, strict=True):
        assert latent.shape == before.shape
        # More than the permutation happened.
        assert not torch.allclose(latent.sort().values, before.sort().values, atol=0.1)
        torch.testing.assert_close(after, before)


@pytest.mark.parametrize("shapes", SHAPES)
def test_fusion_knows_its_determinant(shapes: list[tuple[int, int, int]]) -> None:
    fusion, features = seeded(shapes, 2)
    sizes = [int(np.prod(shape)) for shape in shapes]
    log_determinants = fusion(features)[1]
    assert log_determinants.shape == (2,)

    def flat(values: Tensor) -> Tensor:
        parts = values.split(sizes)
        inputs = [part.reshape(1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        return torch.cat([latent.flatten() for latent in fusion(inputs)[0]])

    for image in range(2):
        together = torch.cat([part[image].flatten() for part in features])
        expected = log_abs_determinant(flat, together)
        assert abs(float(expected)) > 0.1
        torch.testing.assert_close(log_determinants[image], expected)


def test_fusion_couples_both_halves_in_turn() -> None:
    fusion, (x, y) = seeded([(4, 4, 4), (6, 2, 2)], 1)
    x0, y0 = (z[:, order] for z, order in zip((x, y), fusion._orders(), strict=True))
    with torch.no_grad():
        (s0, s1), (t0, t1) = fusion.for_first([x0[:, 2:], y0[:, 3:]])
        a0, a1 = x0[:, :2] * s0.exp() + t0, y0[:, :3] * s1.exp() + t1
        (u0, u1), (v0, v1) = fusion.for_second([a0, a1])
        (z0, z1), log_determinant = fusion([x, y])
    torch.testing.assert_close(z0, torch.cat([a0, x0[:, 2:] * u0.exp() + v0], dim=1))
    torch.testing.assert_close(z1, torch.cat([a1, y0[:, 3:] * u1.exp() + v1], dim=1))
    assert float(log_determinant) == pytest.approx(float(sum(s.sum() for s in (s0, s1, u0, u1))))


def test_exchange() -> None:
    torch.manual_seed(0)
    exchange = stir(Exchange([3, 5], [2, 6], 1.9))
    fine, coarse = torch.randn(2, 3, 4, 6).double(), torch.randn(2, 5, 2, 3).double()
    first, norm, _, second = exchange.mix
    assert first.out_channels == (3 + 5) // 4

    def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
        return functional.conv2d(x, layer.weight, layer.bias, padding=1)

    hidden = conv(torch.cat([functional.avg_pool2d(fine, 2), coarse], dim=1), first)
    centred = hidden - hidden.mean(1, keepdim=True)
    normed = centred / (hidden.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    normed = normed * norm.weight[:, None, None] + norm.bias[:, None, None]
    mixed = conv(normed.clamp(min=0), second).clamp(min=0)
    large = functional.interpolate(mixed[:, :3], (4, 6), mode="bilinear", align_corners=True)
    inputs = [fine + large, coarse + mixed[:, 3:]]
    scales, shifts = exchange([fine, coarse])
    for index, x in enumerate(inputs):
        raw = conv(x, exchange.scales[index])
        torch.testing.assert_close(scales[index], 1.9 * 0.636 * torch.atan(raw / 1.9))
        torch.testing.assert_close(shifts[index], conv(x, exchange.shifts[index]))
    assert [s.shape[1] for s in scales] == [2, 6]


@pytest.mark.parametrize("grid", [(2, 3), (4, 6), (3, 5)])
def test_pool(grid: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(pool(x, grid), functional.adaptive_avg_pool2d(x, grid))


@pytest.mark.parametrize("shape", [(4, 2, 2), (5, 2, 3)])
def test_parallel_flow_knows_its_determinant(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    flow = stir(parallel_flow(shape, 2, 4, 1.9))
    codes = [torch.randn(1, 4, *shape[1:], dtype=torch.float64)]
    features = torch.randn(1, *shape, dtype=torch.float64)
    latent, log_determinant = flow(features, codes)

    def flat(values: Tensor) -> Tensor:
        output: Tensor = flow(values.reshape(1, *shape), codes)[0]
        return output.flatten()

    expected = log_abs_determinant(flat, features)
    torch.testing.assert_close(log_determinant[0], expected)
    torch.testing.assert_close(flow(latent, codes, rev=True)[0], features)
    assert not torch.allclose(flow(features, [codes[0] + 1])[0], latent)


WIDE_RESNET = [(256, 32, 32), (512, 16, 16), (1024, 8, 8)]


def millions(module: nn.Module) -> float:
    return sum(part.numel() for part in module.parameters() if part.requires_grad) / 1e6


def test_parameters_of_wide_resnet() -> None:
    with torch.device("meta"):
        flows = [
            millions(parallel_flow(shape, blocks, 64, 1.9))
            for shape, blocks in zip(WIDE_RESNET, Hyperparameters().blocks, strict=True)
        ]
        halves = [shape[0] // 2 for shape in WIDE_RESNET]
        fusion = 2 * millions(Exchange(halves, halves, 1.9))
    assert flows == pytest.approx([1.55, 11.99, 66.39], abs=0.005)
    assert fusion == pytest.approx(19.62, abs=0.005)
    assert sum(flows) + fusion == pytest.approx(99.56, abs=0.006)


def test_learning_rate_is_torchs() -> None:
    parameters = Hyperparameters()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 12),
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [70, 90], 0.33),
    ]
    for epoch in range(100):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(epoch, parameters) == pytest.approx(expected), epoch
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    rates = [learning_rate(epoch, parameters) for epoch in (0, 12, 69, 70, 90)]
    assert rates == pytest.approx([1e-5, 1e-4, 1e-4, 3.3e-5, 1.089e-5])
    assert learning_rate(0, dataclasses.replace(parameters, warmup_epochs=0)) == 1e-4


def test_loss(rng: np.random.Generator) -> None:
    latents = [rng.normal(size=(3, 4, 2, 2)), rng.normal(size=(3, 6, 1, 1))]
    determinants = rng.normal(size=3)
    expected = np.mean(
        [sum(np.sum(z[n] ** 2) for z in latents) / 2 - determinants[n] for n in range(3)]
    )
    result = negative_log_likelihood(
        [torch.from_numpy(z) for z in latents], torch.from_numpy(determinants)
    )
    assert float(result) == pytest.approx(expected)


def test_positions_are_a_condition(feature_toy: Any, build: Any) -> None:
    algorithm = build("msflow", SMALL, feature_toy.train)
    assert [tuple(code.shape) for code in algorithm.positions] == [(8, 8, 8), (8, 4, 4), (8, 2, 2)]
    batch = [torch.from_numpy(array[:2]) for array in feature_toy.train.arrays]
    loss = algorithm.loss(batch)
    algorithm.positions = [code + 1 for code in algorithm.positions]
    assert not torch.isclose(algorithm.loss(batch), loss, rtol=1e-6)


def test_loss_of_a_batch(feature_toy: Any, build: Any) -> None:
    algorithm = build("msflow", SMALL, feature_toy.train)
    outputs, expected = [], torch.zeros(3)
    for index, array in enumerate(feature_toy.train.arrays):
        pooled = functional.avg_pool2d(torch.from_numpy(array[:3]), 3, 2, 1)
        code = algorithm.positions[index][None].repeat(3, 1, 1, 1)
        output, log_determinant = algorithm.flows[index](pooled, [code])
        outputs.append(output)
        expected = expected - log_determinant
    latents, log_determinant = algorithm.fusion(outputs)
    expected = expected - log_determinant + sum(z.square().sum((1, 2, 3)) / 2 for z in latents)
    batch = [torch.from_numpy(array[:3]) for array in feature_toy.train.arrays]
    torch.testing.assert_close(algorithm.loss(batch), expected.mean())


def enlarge(maps: np.ndarray, side: int) -> np.ndarray:
    """Bilinear (N, h, w) -> (N, side, side), corners on corners."""

    def along(values: np.ndarray) -> np.ndarray:
        places = np.linspace(0, len(values) - 1, side)
        return np.interp(places, np.arange(len(values)), values)

    return np.apply_along_axis(along, 2, np.apply_along_axis(along, 1, maps))


def test_maps_and_scores(rng: np.random.Generator) -> None:
    latents = [rng.normal(0, 2, (2, 6, 4, 4)), rng.normal(0, 2, (2, 3, 2, 2))]
    logs = [-(z**2).mean(axis=1) / 2 for z in latents]
    tensors = [log_likelihood(torch.from_numpy(z)) for z in latents]
    relative = np.sum([enlarge(np.exp(p - p.max((1, 2), keepdims=True)), 9) for p in logs], axis=0)
    additive = relative.max((1, 2), keepdims=True) - relative
    np.testing.assert_allclose(additive_map(tensors, (9, 9)), additive, atol=1e-12)
    total = np.sum([enlarge(p, 9) for p in logs], axis=0)
    multiplicative = 1 - np.exp(total - total.max((1, 2), keepdims=True))
    distances = distance_to_best(tensors, (9, 9))
    np.testing.assert_allclose(1 - np.exp(-distances.numpy()), multiplicative, atol=1e-12)
    scores = image_scores(distances, 0.1)
    for image in range(2):
        expected = np.sort(multiplicative[image].ravel())[-8:].mean()  # 8 = int(0.1 * 81)
        assert float(scores["multiplicative"][image]) == pytest.approx(expected)
        assert float(scores["log_multiplicative"][image]) == pytest.approx(-np.log(1 - expected))


def test_strong_anomalies_do_not_tie() -> None:
    distances = torch.tensor([50.0, 60.0, 2000.0])[:, None, None].expand(3, 10, 10)
    scores = image_scores(distances, 0.03)["log_multiplicative"]
    torch.testing.assert_close(scores, torch.tensor([50.0, 60.0, 2000.0]).double())


def test_prediction(feature_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("msflow", SMALL, feature_toy.train).algorithm
    prediction = predict(algorithm, feature_toy.test)
    with torch.no_grad():
        latents, _ = algorithm._latents([torch.from_numpy(x) for x in feature_toy.test.arrays])
    likelihoods = [log_likelihood(latent) for latent in latents]
    distances = distance_to_best(likelihoods, (64, 64))
    maps = {key: values.numpy() for key, values in prediction.maps.items()}
    np.testing.assert_allclose(maps["additive"], additive_map(likelihoods, (64, 64)), atol=1e-4)
    np.testing.assert_allclose(maps["log_multiplicative"], distances, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(maps["multiplicative"], 1 - np.exp(-distances.numpy()), atol=1e-4)
    top = np.sort(maps["multiplicative"].reshape(len(feature_toy.test), -1))[:, -122:]
    np.testing.assert_allclose(prediction.scores["multiplicative"], top.mean(axis=1), rtol=1e-4)
    for values in maps.values():
        np.testing.assert_array_equal(values.min(axis=(1, 2)), 0)  # each image's own best place
    assert maps["additive"].max() <= 3


def test_gradient_is_shortened(feature_toy: Any, build: Any) -> None:
    def norm_of_step(limit: float) -> float:
        torch.manual_seed(0)
        np.random.seed(0)
        parameters = {**SMALL, "gradient_norm": limit}
        algorithm = build("msflow", parameters, feature_toy.train)
        algorithm.train_one_epoch([[torch.from_numpy(x[:4]) for x in feature_toy.train.arrays]])
        gradients = [part.grad for part in algorithm.network.parameters() if part.grad is not None]
        return float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())

    assert norm_of_step(1e9) > 10
    assert norm_of_step(2.0) == pytest.approx(2.0, rel=1e-3)


def test_schedule_goes_on_after_a_resumption(feature_toy: Any, fit: Any, build: Any) -> None:
    fitted = fit("msflow", SMALL, feature_toy.train, epochs=2).algorithm
    assert fitted.optimizer.param_groups[0]["lr"] == pytest.approx(1.75e-5)  # of the second epoch
    resumed = build("msflow", SMALL, feature_toy.train)
    resumed.load_state(fitted.state())
    resumed.load_training_state(copy.deepcopy(fitted.training_state()))
    batch = [torch.from_numpy(x[:4]) for x in feature_toy.train.arrays]
    for algorithm in (fitted, resumed):
        algorithm.train_one_epoch([batch])
        assert algorithm.optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-5)
    for key, value in fitted.state().items():
        assert torch.equal(value, resumed.state()[key]), key


def test_training_maximises_the_likelihood(feature_toy: Any, fit: Any) -> None:
    parameters = {**SMALL, "learning_rate": 1e-3, "warmup_epochs": 0}
    losses = fit("msflow", parameters, feature_toy.train, epochs=8).progress.losses
    assert losses[-1]["loss"] < losses[0]["loss"] - 500


@pytest.mark.parametrize("count", [1, 2])
def test_any_number_of_layers(feature_toy: Any, fit: Any, predict: Any, count: int) -> None:
    reader = type(feature_toy.train)(feature_toy.train.arrays[:count])
    algorithm = fit("msflow", {**SMALL, "blocks": (1,) * count}, reader).algorithm
    assert predict(algorithm, reader).maps["additive"].shape == (len(reader), 64, 64)


def test_blocks_are_per_layer(feature_toy: Any, build: Any) -> None:
    with pytest.raises(ValueError, match="for 3 layers"):
        build("msflow", {"blocks": (2, 5)}, feature_toy.train)


def test_permutations_follow_the_seed(feature_toy: Any, fit: Any) -> None:
    orders = [
        fit("msflow", SMALL, feature_toy.train, seed=seed).algorithm.fusion.order2
        for seed in (0, 0, 1)
    ]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
