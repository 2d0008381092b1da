"""AST: the flow inverts and knows its determinant; losses, map and scores follow their formulas."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from FrEIA.modules import GLOWCouplingBlock
from torch import Tensor
from torch.nn import functional

from algorithms.ast import (
    Coupling,
    Flow,
    Hyperparameters,
    build_student,
    distance,
    negative_log_likelihood,
)
from algorithms.blocks.positions import position_encoding

TINY = [(4, 2, 2), (5, 2, 3)]  # an even and an odd number of channels
SMALL = {"teacher_epochs": 2, "kernel_sizes": (3, 5), "teacher_channels": 8}
SMALL |= {"student_channels": 16, "student_blocks": 1, "condition_channels": 8}
FEW = Hyperparameters(kernel_sizes=(3, 1, 5), teacher_channels=7, condition_channels=4)


def stirred(module: Any) -> Any:
    """In float64, and with every parameter mattering (new blocks only permute)."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return module.double()


def data(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(3, 4, *shape[1:], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", TINY)
def test_flow_inverts(shape: tuple[int, int, int]) -> None:
    flow = stirred(Flow(shape[0], FEW))
    x, condition = data(shape)
    latent, _ = flow(x, condition)
    assert not torch.allclose(latent, x, atol=0.5)
    for block in reversed(flow.blocks):
        latent = block.inverse(latent, condition)
    torch.testing.assert_close(latent, x)


@pytest.mark.parametrize("shape", TINY)
def test_log_determinant_is_the_jacobians(shape: tuple[int, int, int]) -> None:
    flow = stirred(Flow(shape[0], FEW))
    x, condition = data(shape)
    _, volumes = flow(x, condition)
    assert volumes.shape == (3, *shape[1:])
    for row in range(3):

        def flat(values: Tensor, row: int = row) -> Tensor:
            latent: Tensor = flow(values.reshape(1, *shape), condition[row : row + 1])[0]
            return latent.flatten()

        jacobian = torch.autograd.functional.jacobian(flat, x[row].flatten())
        expected = torch.linalg.slogdet(jacobian).logabsdet
        assert abs(float(expected)) > 0.1
        torch.testing.assert_close(volumes[row].sum(), expected)


@pytest.mark.parametrize("channels", [6, 7])
def test_block_is_freias(channels: int) -> None:
    """With its clamp told to be the authors'; FrEIA's own divides nothing by v."""
    ours = stirred(Coupling(channels, 1, FEW))
    theirs = GLOWCouplingBlock(
        [(channels, 2, 3)],
        [(4, 2, 3)],
        subnet_constructor=lambda *_: torch.nn.Identity(),
        clamp=1.9,
        clamp_activation=lambda u: 0.636 * torch.atan(u / 1.9),
        split_len=channels // 2,
    )
    theirs.subnet2, theirs.subnet1 = ours.for_one, ours.for_other
    x, condition = data((channels, 2, 3))
    order = np.random.RandomState(1).permutation(channels)
    (expected,), log_determinant = theirs((x[:, order],), [condition])
    found, volumes = ours(x, condition)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(volumes.sum(dim=(1, 2)), log_determinant)


def test_block_formula() -> None:
    """One position and kernels of one pixel, so that convolutions are matrix products."""
    block = stirred(Coupling(6, 1, FEW))
    x, condition = data((6, 1, 1))
    found, volumes = block(x, condition)

    def affine(subnet: Any, passive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = (
            (layer.weight.detach().numpy()[:, :, 0, 0], layer.bias.detach().numpy())
            for layer in (subnet.first, subnet.second)
        )
        inputs = np.hstack([passive, condition.numpy()[:, :, 0, 0]])
        hidden = np.maximum(inputs @ first[0].T + first[1], 0)
        scale, shift = np.split(
            subnet.factor.item() * (hidden @ second[0].T + second[1]), 2, axis=1
        )
        return 1.9 * 0.636 * np.arctan(scale / 1.9), shift

    order = np.random.RandomState(1).permutation(6)
    a, b = np.split(x.numpy()[:, order, 0, 0], 2, axis=1)
    scale_a, shift = affine(block.for_one, b)
    a = a * np.exp(scale_a) + shift
    scale_b, shift = affine(block.for_other, a)
    b = b * np.exp(scale_b) + shift
    np.testing.assert_allclose(found.detach()[:, :, 0, 0], np.hstack([a, b]))
    expected = scale_a.sum(axis=1) + scale_b.sum(axis=1)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(volumes.detach()[:, 0, 0], expected)


def test_new_flow_is_a_permutation() -> None:
    x, condition = data((8, 2, 2))
    latent, volumes = Flow(8, FEW).double()(x, condition)
    torch.testing.assert_close(latent.sort(dim=1).values, x.sort(dim=1).values)
    assert not torch.equal(latent, x)
    assert (volumes == 0).all()


def test_outputs_stay_finite() -> None:
    x, condition = data((4, 2, 2))
    latent, volumes = stirred(Flow(4, FEW))(1e30 * x, condition)
    assert latent.abs().max() == 1e6
    assert volumes.isfinite().all()


def test_a_constant_map_has_no_border() -> None:
    """The teacher's convolutions repeat the map's border instead of zeros."""
    flow = stirred(Flow(4, FEW))
    latent, _ = flow(*(torch.ones(1, 4, 6, 6, dtype=torch.float64) for _ in range(2)))
    assert (latent.amax(dim=(2, 3)) - latent.amin(dim=(2, 3))).max() < 1e-9


def test_parameters_on_efficientnet_b5() -> None:
    with torch.device("meta"):
        teacher = Flow(304, Hyperparameters())
        student = build_student(304, Hyperparameters())
    counts = [sum(part.numel() for part in net.parameters()) for net in (teacher, student)]
    subnets = [(184 * k * k + 1) * 64 + (64 * k * k + 1) * 304 + 1 for k in (3, 3, 3, 5)]
    residual = 2 * (1024 * (1024 * 9 + 1) + 2 * 1024)
    assert counts == [
        2 * sum(subnets),
        1024 * (336 * 9 + 1) + 4 * residual + 304 * (1024 * 9 + 1),
    ]
    assert [round(count / 1e6, 2) for count in counts] == [3.25, 81.42]
    assert [block.for_one.first.kernel_size[0] for block in teacher.blocks] == [3, 3, 3, 5]


def test_residual_block(rng: np.random.Generator) -> None:
    """Nothing comes after the sum, and batch norm counts."""
    student = build_student(4, Hyperparameters(student_channels=5)).eval()
    block = student[2]
    x = torch.from_numpy(rng.normal(size=(2, 5, 3, 3)).astype(np.float32))
    expected = x
    for convolution, norm, leaky in (block.layers[:3], block.layers[3:]):
        norm.running_mean.fill_(0.3)
        expected = functional.conv2d(expected, convolution.weight, convolution.bias, padding=1)
        expected = (expected - 0.3) / np.sqrt(1 + 1e-5)
        expected = torch.where(expected > 0, expected, 0.01 * expected)
        assert leaky.negative_slope == 0.01
    torch.testing.assert_close(block(x), x + expected)


def test_losses(rng: np.random.Generator) -> None:
    latent, other = rng.normal(size=(2, 3, 5, 4, 4))
    volumes = rng.normal(size=(3, 4, 4))
    likelihood = negative_log_likelihood(torch.from_numpy(latent), torch.from_numpy(volumes))
    np.testing.assert_allclose(likelihood, (latent**2).sum(axis=1) / 2 - volumes)
    found = distance(torch.from_numpy(latent), torch.from_numpy(other))
    np.testing.assert_allclose(found, ((latent - other) ** 2).mean(axis=1))


@pytest.fixture(scope="module")
def trained(feature_toy: Any, fit: Any) -> Any:
    return fit("ast", SMALL, feature_toy.train, epochs=4).algorithm


def outputs(algorithm: Any, arrays: list[np.ndarray]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each layer, z, log|det J| and the student's z, without the class's own code."""
    results = []
    for teacher, student, array in zip(algorithm.teachers, algorithm.students, arrays, strict=True):
        x = torch.from_numpy(array)
        code = position_encoding(8, array.shape[2:])[None].repeat(len(x), 1, 1, 1)
        with torch.no_grad():
            results.append((*teacher(x, code), student(torch.cat([code, x], dim=1))))
    return results


def test_phases(trained: Any, feature_toy: Any) -> None:
    trained.network.eval()
    batch = [torch.from_numpy(array[:3]) for array in feature_toy.train.arrays]
    layers = outputs(trained, [array[:3] for array in feature_toy.train.arrays])
    teacher = sum(float((z.square().sum(1) / 2 - volume).mean()) for z, volume, _ in layers)
    student = sum(float((z - told).square().mean()) for z, _, told in layers)
    assert trained.epoch == 4
    assert trained.loss(batch).item() == pytest.approx(student, rel=1e-5)
    trained.epoch = 1
    assert trained.loss(batch).item() == pytest.approx(teacher, rel=1e-5)
    trained.epoch = 4


def test_map_and_scores(trained: Any, feature_toy: Any, predict: Any) -> None:
    prediction = predict(trained, feature_toy.test)
    expected, means, maxima = np.zeros((len(feature_toy.test), 64, 64)), 0.0, 0.0
    for z, _, told in outputs(trained, feature_toy.test.arrays):
        grid = (z - told).square().mean(dim=1, keepdim=True)
        large = functional.interpolate(grid, (64, 64), mode="bicubic", align_corners=False)
        expected += large[:, 0].numpy() / 3
        means = means + grid.numpy().mean(axis=(1, 2, 3)) / 3
        maxima = maxima + grid.numpy().max(axis=(1, 2, 3)) / 3
    np.testing.assert_allclose(prediction.maps["distance"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prediction.scores["mean"], means, rtol=1e-4)
    np.testing.assert_allclose(prediction.scores["maximum"], maxima, rtol=1e-4)


def test_one_rests_while_the_other_learns(feature_toy: Any, fit: Any) -> None:
    states = [
        fit("ast", SMALL, feature_toy.train, epochs=epochs).algorithm.state()
        for epochs in (1, 2, 3)
    ]
    moved = [
        {part for part in ("teachers", "students") if any(
            not torch.equal(before[key], after[key]) for key in before if key.startswith(part)
        )}
        for before, after in pairwise(states)
    ]  # fmt: skip
    assert moved == [{"teachers"}, {"students"}]


def test_a_step_is_that_of_two_optimisers(feature_toy: Any, build: Any) -> None:
    """The student's Adam begins with its own first step, not after the teacher's."""
    batch = [torch.from_numpy(array) for array in feature_toy.train.arrays]
    torch.manual_seed(1)
    ours = build("ast", SMALL, feature_toy.train)
    torch.manual_seed(1)
    other = build("ast", SMALL, feature_toy.train)
    for _ in range(4):
        ours.train_one_epoch([batch])
    for phase, module in enumerate((other.teachers, other.students)):
        optimizer = torch.optim.Adam(module.parameters(), lr=2e-4, weight_decay=1e-5)
        for _ in range(2):
            other.epoch = 2 * phase
            optimizer.zero_grad()
            other.loss(batch).backward()
            optimizer.step()
    for name, value in ours.network.named_parameters():
        assert torch.equal(value, other.network.get_parameter(name)), name


def test_both_losses_fall(feature_toy: Any, fit: Any) -> None:
    parameters = SMALL | {"teacher_epochs": 6, "learning_rate": 2e-3}
    losses = fit("ast", parameters, feature_toy.train, epochs=12).progress.losses
    values = [loss["loss"] for loss in losses]
    assert values[5] < values[0] - 10
    assert values[11] < 0.8 * values[6]


def test_scale(trained: Any, feature_toy: Any, build: Any, predict: Any) -> None:
    scaled = build("ast", SMALL | {"scale": 20.0}, feature_toy.train)
    scaled.load_state(trained.state())
    small = type(feature_toy.test)([array / 20 for array in feature_toy.test.arrays])
    expected, found = predict(trained, feature_toy.test), predict(scaled, small)
    torch.testing.assert_close(found.maps["distance"], expected.maps["distance"])


def test_permutations_are_always_the_same(feature_toy: Any, fit: Any) -> None:
    orders = [
        fit("ast", SMALL, feature_toy.train, seed=seed).algorithm.state()[
            "teachers.0.blocks.1.order"
        ]
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[0], np.random.RandomState(1).permutation(12))
