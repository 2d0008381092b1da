"""AltUB: the learned base's likelihood, and who learns when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional

from algorithms.altub import Base, negative_log_likelihood
from stages.devices import seed_everything

SMALL = {"flow_steps": 2}
FLOW, BASE = ("norms.", "flows."), ("bases.",)  # what names in a state begin with


def batches(toy: Any, sizes: tuple[int, ...]) -> list[list[Tensor]]:
    """Training images in batches of given sizes."""
    arrays = [torch.from_numpy(array) for array in toy.train.arrays]
    stops = np.cumsum(sizes)
    return [
        [array[stop - size : stop] for array in arrays]
        for size, stop in zip(sizes, stops, strict=True)
    ]


def seeded(build: Any, name: str, parameters: dict[str, Any], toy: Any) -> Any:
    seed_everything(0, 0)
    return build(name, SMALL | parameters, toy.train)


def copy(algorithm: Any, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    state = algorithm.state().items()
    return {name: value.clone() for name, value in state if name.startswith(prefixes)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    assert one
    return all(torch.equal(value, other[name]) for name, value in one.items())


def shifted_base(rng: np.random.Generator, channels: int) -> Base:
    base = Base(channels, learn_variance=True).double()
    with torch.no_grad():
        base.mean.copy_(torch.from_numpy(rng.normal(size=(channels, 1, 1))))
        base.log_variance.copy_(torch.from_numpy(rng.normal(size=(channels, 1, 1))))
    return base


@pytest.mark.parametrize("channels", [5, 1])
def test_likelihood_is_the_normal_densitys(rng: np.random.Generator, channels: int) -> None:
    base = shifted_base(rng, channels)
    latent, log_determinant = rng.normal(0, 2, (3, 5, 2, 4)), rng.normal(size=3)
    mean, variance = base.mean.detach().numpy(), np.exp(base.log_variance.detach().numpy())
    log_density = norm.logpdf(latent, mean, np.sqrt(variance)).sum(axis=(1, 2, 3))
    constant = 5 * 2 * 4 / 2 * np.log(2 * np.pi)
    expected = -(log_density + log_determinant).mean() - constant
    result = negative_log_likelihood(
        torch.from_numpy(latent), torch.from_numpy(log_determinant), base
    )
    assert float(result.detach()) == pytest.approx(expected)


def test_begins_as_fastflow(feature_toy: Any, build: Any) -> None:
    (batch,) = batches(feature_toy, (4,))
    plain = seeded(build, "fastflow2d", {}, feature_toy)
    algorithm = seeded(build, "altub", {}, feature_toy)
    assert same(copy(algorithm, FLOW), copy(plain, FLOW))
    torch.testing.assert_close(algorithm.loss(batch), plain.loss(batch))


def test_map_and_scores(
    feature_toy: Any, build: Any, predict: Any, rng: np.random.Generator
) -> None:
    algorithm = seeded(build, "altub", {}, feature_toy)
    expected = np.zeros((len(feature_toy.test), 64, 64))
    for index, array in enumerate(feature_toy.test.arrays):
        base = algorithm.bases[index]
        mean, log_variance = (rng.normal(size=(array.shape[1], 1, 1)) for _ in range(2))
        with torch.no_grad():
            base.mean.copy_(torch.from_numpy(mean))
            base.log_variance.copy_(torch.from_numpy(log_variance))
            latent, _ = algorithm.flows[index](algorithm.norms[index](torch.from_numpy(array)))
        energy = ((latent.numpy() - mean) ** 2 / np.exp(log_variance)).mean(axis=1) / 2
        large = functional.interpolate(torch.from_numpy(energy)[:, None], (64, 64), mode="bilinear")
        expected += large[:, 0].numpy() / 3
    prediction = predict(algorithm, feature_toy.test)
    np.testing.assert_allclose(prediction.maps["log_probability"], expected, rtol=1e-4)
    np.testing.assert_allclose(prediction.scores["maximum"], expected.max(axis=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(prediction.scores["mean"], expected.mean(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("per_channel", "learn_variance", "learned"),
    [(True, True, 120), (True, False, 60), (False, True, 6), (False, False, 3)],
)
def test_parameters_of_the_base(
    feature_toy: Any, build: Any, per_channel: bool, learn_variance: bool, learned: int
) -> None:
    modes = {"per_channel": per_channel, "learn_variance": learn_variance}
    algorithm = seeded(build, "altub", modes, feature_toy)
    assert sum(part.numel() for part in algorithm.parts[1]) == learned  # of 12 + 20 + 28 channels
    before = copy(algorithm, ("bases",))
    algorithm.train_one_epoch(batches(feature_toy, (4, 4)))
    for name, value in copy(algorithm, ("bases",)).items():
        learns = learn_variance or name.endswith("mean")
        assert torch.equal(value, before[name]) is not learns, name


def test_every_fifth_epoch_is_the_bases(feature_toy: Any, build: Any) -> None:
    algorithm = seeded(build, "altub", {}, feature_toy)
    moved = []
    for _ in range(11):
        flow, base = copy(algorithm, FLOW), copy(algorithm, BASE)
        algorithm.train_one_epoch(batches(feature_toy, (4, 4)))
        assert not same(copy(algorithm, BASE), base)
        moved.append(not same(copy(algorithm, FLOW), flow))
    assert [epoch for epoch, flow in enumerate(moved, start=1) if not flow] == [5, 10]


def steps(optimizer: torch.optim.Optimizer) -> set[float]:
    """How often an optimiser has updated its parameters."""
    return {float(moments["step"]) for moments in optimizer.state_dict()["state"].values()}


def test_by_batch(feature_toy: Any, build: Any) -> None:
    # Batches 0 and 3 of each epoch are the base's.
    parameters = {"interval_unit": "batch", "interval": 3}
    algorithm = seeded(build, "altub", parameters, feature_toy)
    for _ in range(2):
        algorithm.train_one_epoch(batches(feature_toy, (3, 3, 3, 3, 1)))
    assert steps(algorithm.optimizer) == {6.0}
    assert steps(algorithm.alone) == {4.0}


def test_by_batch_the_flow_never_learns_from_one(feature_toy: Any, build: Any) -> None:
    algorithm = seeded(build, "altub", {"interval_unit": "batch"}, feature_toy)
    flow = copy(algorithm, FLOW)
    for _ in range(6):
        algorithm.train_one_epoch(batches(feature_toy, (13,)))
    assert same(copy(algorithm, FLOW), flow)


@pytest.mark.parametrize("epochs", [3, 4])  # of which 2 and 4 are the base's
def test_resumed_training_knows_the_epoch(feature_toy: Any, build: Any, epochs: int) -> None:
    data = batches(feature_toy, (4, 4))
    straight, resumed = (seeded(build, "altub", {"interval": 2}, feature_toy) for _ in range(2))
    for _ in range(epochs):
        straight.train_one_epoch(data)
    resumed.load_state({name: value.clone() for name, value in straight.state().items()})
    moments = straight.training_state().items()
    resumed.load_training_state({name: value.clone() for name, value in moments})
    for algorithm in (straight, resumed):
        algorithm.train_one_epoch(data)
    assert same(copy(resumed, FLOW + BASE), copy(straight, FLOW + BASE))


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_clipped(feature_toy: Any, build: Any, frozen: bool) -> None:
    (batch,) = batches(feature_toy, (13,))
    interval = 1 if frozen else 5
    norms = {}
    for clip in (0.5, 1e9):
        parameters = {"interval": interval, "clip_norm": clip}
        algorithm = seeded(build, "altub", parameters, feature_toy)
        algorithm.train_one_epoch([batch])
        norms[clip] = [
            sum(float(p.grad.square().sum()) for p in part if p.grad is not None) ** 0.5
            for part in algorithm.parts
        ]
    assert norms[1e9][1] > 1
    assert norms[0.5][1] == pytest.approx(0.5, rel=1e-3)
    if frozen:
        assert norms[0.5][0] == norms[1e9][0] == 0
    else:
        assert norms[1e9][0] > 1
        assert norms[0.5][0] == pytest.approx(0.5, rel=1e-3)


def test_base_alone_learns_the_latents_moments(feature_toy: Any, build: Any) -> None:
    algorithm = seeded(build, "altub", {"interval": 1}, feature_toy)
    (batch,) = batches(feature_toy, (3,))
    for _ in range(200):
        algorithm.train_one_epoch([batch])
    with torch.no_grad():
        latents = [latent for latent, _ in algorithm._latents(batch)]
    for base, latent in zip(algorithm.bases, latents, strict=True):
        torch.testing.assert_close(
            base.mean.flatten().detach(), latent.mean(dim=(0, 2, 3)), atol=0.02, rtol=0.02
        )
        torch.testing.assert_close(
            base.log_variance.flatten().exp().detach(),
            latent.var(dim=(0, 2, 3), correction=0),
            atol=0.02,
            rtol=0.05,
        )


@pytest.mark.parametrize("unit", ["epoch", "batch"])
def test_training_maximises_the_likelihood(feature_toy: Any, fit: Any, unit: str) -> None:
    parameters = SMALL | {"interval_unit": unit}
    losses = fit("altub", parameters, feature_toy.train, epochs=10).progress.losses
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]
