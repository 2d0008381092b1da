"""The PDN teacher: its targets, their statistics, the loss, published weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from algorithms.base import Context, create_teacher
from algorithms.blocks.pdn import Pdn
from algorithms.teachers.pdn import Hyperparameters, PdnTeacher, convert_weights
from tests.algorithms.conftest import toy_network

SMALL = {"width": 0.125, "reduction": 1, "pretrain_dimension": None}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def context() -> Context:
    size, device = (64, 64), torch.device("cpu")
    network = toy_network(1, 2)  # strides 4 and 8
    return Context(
        size, ((3, *size),), 4, 0, device, mean=MEAN, std=STD, backbone=lambda *_: network
    )


def teacher(context: Context, **parameters: Any) -> PdnTeacher:
    torch.manual_seed(0)
    made = create_teacher("pdn", SMALL | parameters, context)
    assert isinstance(made, PdnTeacher)
    return made


def images(rng: np.random.Generator, count: int = 4) -> torch.Tensor:
    pixels = rng.random((count, 3, 64, 64)).astype(np.float32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (torch.from_numpy(pixels) - mean) / std


def by_hand(layers: list[torch.Tensor], side: int, pretrain: int | None, target: int) -> np.ndarray:
    """Cut neighbourhoods out, resize, pool, stack, pool: (N, target, h, w)."""
    grid, pooled = layers[0].shape[2:], []
    for layer in layers:
        cut = functional.unfold(layer, side, padding=side // 2).unflatten(2, layer.shape[2:])
        cut = functional.interpolate(cut, grid, mode="bilinear")
        vectors = cut.permute(0, 2, 3, 1).flatten(0, 2)[:, None]
        pooled.append(functional.adaptive_avg_pool1d(vectors, pretrain or layer.shape[1])[:, 0])
    stacked = functional.adaptive_avg_pool1d(torch.cat(pooled, dim=1)[:, None], target)[:, 0]
    return stacked.reshape(len(layers[0]), *grid, target).permute(0, 3, 1, 2).numpy()


@pytest.mark.parametrize(("side", "pretrain"), [(3, 100), (3, None), (1, None)])
def test_target(
    context: Context, rng: np.random.Generator, side: int, pretrain: int | None
) -> None:
    batch = images(rng)
    made = teacher(context, neighbourhood=side, pretrain_dimension=pretrain)
    assert context.backbone is not None
    expected = by_hand(context.backbone()(batch), side, pretrain, 48)
    np.testing.assert_allclose(made.embedding(batch), expected, rtol=1e-4, atol=1e-5)


def test_statistics_and_loss(context: Context, rng: np.random.Generator) -> None:
    made = teacher(context, grayscale=0.0)
    batch = images(rng, 5)
    made.prepare([[batch[:2]], [batch[2:]]])  # type: ignore[arg-type]
    target = made.embedding(batch).numpy()
    mean, std = target.mean(axis=(0, 2, 3)), target.std(axis=(0, 2, 3))
    state = {key: value.numpy() for key, value in made.state().items()}
    np.testing.assert_allclose(state["target_mean"][:, 0, 0], mean, rtol=1e-4, atol=1e-5)
    assert (std == 0).any()  # a channel that is always 0 stays as it is
    std[std == 0] = 1
    np.testing.assert_allclose(state["target_std"][:, 0, 0], std, rtol=1e-4, atol=1e-5)
    normalised = (target - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        difference = made.pdn(batch, padded=True).numpy() - normalised
        loss = made.loss(batch)
    assert float(loss) == pytest.approx(np.mean(difference**2), rel=1e-4)


def test_statistics_end_after_enough_images(context: Context, rng: np.random.Generator) -> None:
    batch = images(rng, 6)
    few = teacher(context, grayscale=0.0, statistics_images=3)
    few.prepare([[batch[:2]], [batch[2:4]], [batch[4:]]])  # type: ignore[arg-type]
    same = teacher(context, grayscale=0.0)
    same.prepare([[batch[:4]]])  # type: ignore[arg-type]
    assert torch.equal(few.state()["target_mean"], same.state()["target_mean"])


def test_images_of_half_the_size(context: Context, rng: np.random.Generator) -> None:
    """The network sees pixels averaged 2 x 2; a stride of 8 in the large image is 4 in the small."""
    stride8 = toy_network(2)
    made = teacher(replace(context, backbone=lambda *_: stride8), reduction=2, grayscale=0.0)
    batch = images(rng)
    halved = batch.numpy().reshape(4, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    with torch.no_grad():
        expected = made.pdn(torch.from_numpy(halved), padded=True) - made.embedding(batch)
        assert float(made.loss(batch)) == pytest.approx(float(expected.square().mean()), rel=1e-4)


def test_grids_that_differ_are_refused(context: Context, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="change `reduction`"):
        teacher(context, reduction=2).loss(images(rng))


def test_both_see_the_same_grey_image(context: Context, rng: np.random.Generator) -> None:
    made = teacher(context, grayscale=1.0)
    std, mean = (torch.tensor(values)[:, None, None] for values in (STD, MEAN))
    grey = made._augmented(images(rng)) * std + mean
    torch.testing.assert_close(grey, grey[:, :1].expand_as(grey))
    made_colour = teacher(context, grayscale=0.0)
    batch = images(rng)
    with torch.no_grad():
        expected = made_colour.loss(made._augmented(batch))
        torch.testing.assert_close(made.loss(batch), expected)


def test_it_learns_and_resumes(context: Context, rng: np.random.Generator) -> None:
    batch = images(rng)

    def run(made: PdnTeacher, steps: int) -> float:
        for _ in range(steps):
            loss = made.loss(batch)
            made.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            made.optimizer.step()
        return loss.item()

    made = teacher(context, grayscale=0.0, learning_rate=1e-2)
    made.prepare([[batch]])  # type: ignore[arg-type]
    first = run(made, 1)
    other = teacher(context, grayscale=0.0, learning_rate=1e-2)
    other.load_state({key: value.clone() for key, value in made.state().items()})
    other.load_training_state({key: one.clone() for key, one in made.training_state().items()})
    last = run(made, 15)
    assert last < 0.9 * first
    assert run(other, 15) == last


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize("style", ["conv{}", "{}"])
def test_published_weights(context: Context, size: str, style: str) -> None:
    torch.manual_seed(1)
    published = Pdn.scaled(size, 48, 0.125)
    # In a Sequential, ReLUs and the two pools count, too.
    places = {"small": (0, 3, 6, 8), "medium": (0, 3, 6, 8, 10, 12)}[size]
    named = {
        f"{style.format(place if style == '{}' else number + 1)}.{kind}": getattr(layer, kind)
        for number, (layer, place) in enumerate(zip(published.convolutions, places, strict=True))
        for kind in ("weight", "bias")
    }
    shuffled = dict(sorted(named.items(), reverse=True))  # "12" sorts before "3"
    converted = convert_weights(shuffled)
    assert converted.keys() == {f"pdn.{key}" for key in published.state_dict()}
    for key, value in published.state_dict().items():
        assert torch.equal(converted[f"pdn.{key}"], value)
    # Without the backbone that they were learned from, and with their own normalisation.
    made = teacher(replace(context, backbone=None), size=size)
    made.load_state(made.published(shuffled))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(made.pdn(image), published(image))
    assert made.state()["mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_other_weights_are_refused() -> None:
    wrong = {"conv1.weight": torch.zeros(4, 3, 4, 4), "conv1.bias": torch.zeros(4)}
    for weights in (wrong, {"layer1.0.weight": torch.zeros(1)}, {}):
        with pytest.raises(ValueError, match="not a published PDN"):
            convert_weights(weights)


def test_defaults_are_the_papers(context: Context) -> None:
    with torch.device("meta"):
        made = PdnTeacher(Hyperparameters(), replace(context, device=torch.device("meta")))
    assert sum(one.numel() for one in made.pdn.parameters()) == 2_694_144
    assert made.network.get_buffer("target_mean").shape == (384, 1, 1)
