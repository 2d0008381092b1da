"""EfficientAD: terms of the loss, colours, quantiles, maps, and the course of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as colours

from algorithms.base import Context, create
from algorithms.blocks.pdn import Pdn
from algorithms.efficientad import EfficientAd, change_colours, hard_mean

SIDE, OUTPUTS = 64, 12
QUICK = {"steps": 40, "steps_per_epoch": 4, "learning_rate": 1e-3, "autoencoder_width": 0.25}
MEAN, STD = (0.5, 0.4, 0.6), (0.25, 0.3, 0.2)  # of the images that an algorithm gets
TEACHERS_MEAN, TEACHERS_STD = (0.4, 0.5, 0.5), (0.2, 0.25, 0.3)


class Others:
    """Images of other things, which count how often they are read."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels, self.reads = pixels, 0

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: Sequence[int]) -> Tensor:
        self.reads += 1
        return normalised(self.pixels[list(rows)])


def column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def normalised(pixels: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    return (pixels - column(mean)) / column(std)


def as_taught(pixels: Tensor) -> Tensor:
    return normalised(pixels, TEACHERS_MEAN, TEACHERS_STD)


def teacher_state(size: str = "small", outputs: int = OUTPUTS, width: float = 0.125) -> Any:
    torch.manual_seed(5)
    network = Pdn.scaled(size, outputs, width)
    weights = {f"pdn.{key}": value for key, value in network.state_dict().items()}
    return weights | {"mean": column(TEACHERS_MEAN), "std": column(TEACHERS_STD)}


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Normal images: one picture, with noise."""
    torch.manual_seed(3)
    picture = functional.interpolate(torch.rand(1, 3, 9, 9), (SIDE, SIDE), mode="bilinear")
    return (picture + 0.05 * torch.randn(7, 3, SIDE, SIDE)).clamp(0, 1)


@pytest.fixture
def context() -> Context:
    torch.manual_seed(4)
    return Context(
        (SIDE, SIDE),
        ((3, SIDE, SIDE),),
        7,
        0,
        torch.device("cpu"),
        mean=MEAN,
        std=STD,
        teacher=teacher_state(),
        outside=Others(torch.rand(6, 3, SIDE, SIDE)),
    )


def build(context: Context, **parameters: Any) -> EfficientAd:
    torch.manual_seed(0)
    made = create("efficientad", QUICK | parameters, context)
    assert isinstance(made, EfficientAd)
    return made


def train(algorithm: EfficientAd, pixels: Tensor, epochs: int = 1, size: int = 2) -> list[Any]:
    losses = []
    for _ in range(epochs):
        torch.manual_seed(100 + algorithm.epoch)
        losses.append(
            algorithm.train_one_epoch([[part] for part in normalised(pixels).split(size)])
        )  # type: ignore[arg-type]
    return losses


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("count", [2, 101, 5000])
def test_hard_mean(rng: np.random.Generator, quantile: float, count: int) -> None:
    values = rng.random(count)
    result = hard_mean(torch.from_numpy(values).reshape(1, -1), quantile)
    expected = values[values >= np.quantile(values, quantile)].mean()
    assert float(result) == pytest.approx(expected)


def test_hard_mean_takes_all_equals_and_lets_them_learn() -> None:
    values = torch.tensor([0.0, 1.0, 3.0, 3.0, 3.0], requires_grad=True)
    result = hard_mean(values, 0.5)
    assert result.item() == 3
    result.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("kind", "reference"),
    [(0, colours.adjust_brightness), (1, colours.adjust_contrast), (2, colours.adjust_saturation)],
)
def test_change_of_colours(rng: np.random.Generator, kind: int, reference: Any) -> None:
    images = torch.from_numpy(rng.random((3, 3, 10, 12)).astype(np.float32))
    factors = torch.tensor([0.8, 1.2, 1.0])
    result = change_colours(images, torch.full((3,), kind), factors)
    for one, image, factor in zip(result, images, factors.tolist(), strict=True):
        torch.testing.assert_close(one, reference(image, factor), rtol=0, atol=2e-4)
    torch.testing.assert_close(result[2], images[2])


def test_each_image_changes_in_its_own_way(rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.random((3, 3, 8, 8)))
    kinds, factors = torch.tensor([2, 0, 1]), torch.tensor([1.2, 0.9, 0.8], dtype=torch.float64)
    together = change_colours(images, kinds, factors)
    for row in range(3):
        alone = change_colours(images[row : row + 1], kinds[row : row + 1], factors[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_teacher_is_normalised_over_the_training_images(context: Context, pixels: Tensor) -> None:
    assert context.teacher is not None
    before = {key: value.clone() for key, value in context.teacher.items()}
    algorithm = build(context)
    with torch.no_grad():
        outputs = algorithm.teacher(as_taught(pixels)).numpy()
    train(algorithm, pixels)
    with torch.no_grad():
        result = algorithm.teacher(as_taught(pixels)).numpy()
    mean, std = (getattr(outputs, kind)(axis=(0, 2, 3), keepdims=True) for kind in ("mean", "std"))
    np.testing.assert_allclose(result, (outputs - mean) / std, rtol=1e-2, atol=2e-4)
    train(algorithm, pixels)  # once only
    with torch.no_grad():
        np.testing.assert_array_equal(algorithm.teacher(as_taught(pixels)).numpy(), result)
    for key, value in context.teacher.items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("size", ["small", "medium"])
def test_losses_follow_the_formula(context: Context, pixels: Tensor, size: str) -> None:
    """Every image through the whole student, as the formula has it."""
    context = replace(context, teacher=teacher_state(size))
    algorithm = build(context, penalty_grayscale=0.0)
    algorithm.network.eval()  # no dropout
    others = torch.rand(2, 3, SIDE, SIDE)
    torch.manual_seed(9)
    losses = algorithm.losses([normalised(pixels[:2]), normalised(others)])
    torch.manual_seed(9)
    kinds, factors = torch.randint(3, (2,)), 1 + 0.2 * (2 * torch.rand(2) - 1)
    changed = as_taught(change_colours(pixels[:2], kinds, factors))
    teacher, student, autoencoder = algorithm.teacher, algorithm.student, algorithm.autoencoder
    distance = (teacher(as_taught(pixels[:2])) - student(as_taught(pixels[:2]))[:, :OUTPUTS]) ** 2
    drawn = autoencoder(changed)
    expected = {
        "hard": distance[distance >= torch.quantile(distance, 0.999)].mean(),
        "penalty": (student(as_taught(others))[:, :OUTPUTS] ** 2).mean(),
        "autoencoder": ((teacher(changed) - drawn) ** 2).mean(),
        "imitation": ((drawn - student(changed)[:, OUTPUTS:]) ** 2).mean(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)
    parameters = [*student.parameters(), *autoencoder.parameters()]
    gradients = torch.autograd.grad(sum(losses.values()), parameters)  # type: ignore[arg-type]
    wanted = torch.autograd.grad(sum(expected.values()), parameters)  # type: ignore[arg-type]
    for left, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


def test_parts_of_the_loss_can_be_left_out(context: Context, pixels: Tensor) -> None:
    (losses,) = train(build(context, penalty=False), pixels)
    assert losses.keys() == {"hard", "autoencoder", "imitation"}
    assert isinstance(context.outside, Others)
    assert context.outside.reads == 0
    algorithm = build(context, hard_quantile=0.0)
    algorithm.network.eval()
    batch = [normalised(pixels[:2])]
    with torch.no_grad():
        difference = (
            algorithm.teacher(as_taught(pixels[:2]))
            - algorithm.student(as_taught(pixels[:2]))[:, :OUTPUTS]
        )
        assert float(algorithm.losses(batch)["hard"]) == pytest.approx(
            float(difference.square().mean()), rel=1e-5
        )


def test_steps_do_not_depend_on_the_number_of_images(context: Context, pixels: Tensor) -> None:
    for images in (pixels[:1], pixels[:3], pixels):
        algorithm = build(context, steps_per_epoch=5)
        train(algorithm, images, size=1)
        (steps,) = {int(state["step"]) for state in algorithm.optimizer.state.values()}
        assert steps == 5


def test_every_image_comes_before_one_comes_again(context: Context, pixels: Tensor) -> None:
    algorithm, seen = build(context, steps_per_epoch=14, penalty=False), []
    losses = algorithm.losses

    def watch(batch: Any) -> Any:
        seen.append(float(batch[0].mean()))
        return losses(batch)

    algorithm.losses = watch  # type: ignore[method-assign]
    train(algorithm, pixels, size=1)
    assert len(set(seen[:7])) == len(set(seen[7:])) == 7


def test_rate_falls_once(context: Context, pixels: Tensor) -> None:
    algorithm, rates = build(context, steps=20, steps_per_epoch=5, decay_at=0.6), []
    step = algorithm.optimizer.step

    def watch(*arguments: Any) -> Any:
        rates.append(algorithm.optimizer.param_groups[0]["lr"])
        return step(*arguments)

    algorithm.optimizer.step = watch  # type: ignore[method-assign]
    train(algorithm, pixels, epochs=4)
    assert rates == pytest.approx([1e-3] * 12 + [1e-4] * 8)


def test_few_other_images_are_read_once(context: Context, pixels: Tensor) -> None:
    train(build(context), pixels, epochs=2)
    assert isinstance(context.outside, Others)
    assert context.outside.reads == 1


def test_quantiles_and_maps(context: Context, pixels: Tensor) -> None:
    algorithm = build(context)
    train(algorithm, pixels[:4])
    held_out, tests = pixels[4:], pixels[:3].flip(3)

    def raw(images: Tensor) -> np.ndarray:
        algorithm.network.eval()
        with torch.no_grad():
            teacher, student, drawn = (
                network(as_taught(images)).numpy()
                for network in (algorithm.teacher, algorithm.student, algorithm.autoencoder)
            )
        local = ((teacher - student[:, :OUTPUTS]) ** 2).mean(axis=1)
        return np.stack([local, ((drawn - student[:, OUTPUTS:]) ** 2).mean(axis=1)])

    def resized(maps: np.ndarray) -> np.ndarray:
        return functional.interpolate(torch.from_numpy(maps), (SIDE, SIDE), mode="bilinear").numpy()

    algorithm.calibrate([[normalised(held_out[:2])], [normalised(held_out[2:])]])  # type: ignore[arg-type]
    low, high = np.quantile(resized(raw(held_out)), [0.9, 0.995], axis=(1, 2, 3))
    found = algorithm.state()["quantiles"].numpy()
    np.testing.assert_allclose(found, np.stack([low, high], axis=1), rtol=1e-3)
    expected = 0.1 * (raw(tests) - found[:, :1, None, None]) / np.diff(found)[:, :, None, None]
    expected = np.pad(expected, ((0, 0), (0, 0), (4, 4), (4, 4)))
    with torch.inference_mode():
        prediction = algorithm.predict([normalised(tests)])
    for name, maps in (
        ("student_teacher", expected[0]),
        ("autoencoder", expected[1]),
        ("combined", expected.mean(axis=0)),
    ):
        maps = resized(maps[None])[0]
        np.testing.assert_allclose(prediction.maps[name], maps, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(
            prediction.scores[name], prediction.maps[name].amax(dim=(1, 2))
        )
    plain = build(context, map_normalisation=False, border=0)
    plain.load_state(algorithm.state())
    with torch.inference_mode():
        result = plain.predict([normalised(tests)]).maps["combined"]
    maps = resized(raw(tests).mean(axis=0)[None])[0]
    np.testing.assert_allclose(result, maps, rtol=1e-3, atol=1e-5)


def test_a_descriptor_lies_in_the_middle_of_what_it_sees(context: Context) -> None:
    """Descriptor i sees pixels 4 i to 4 i + 32 (``blocks/test_pdn.py``)."""
    algorithm = build(context)
    zeros = torch.zeros(1, OUTPUTS, 8, 8)
    for row, column in [(0, 0), (2, 5), (7, 7)]:
        teacher = zeros.clone()
        teacher[0, :, row, column] = 1
        prediction = algorithm.judge((teacher, zeros, torch.cat([zeros, zeros], dim=1)))
        peak = prediction.maps["student_teacher"][0]
        weights = peak / peak.sum()
        places = torch.arange(SIDE) + 0.5
        middle = (weights.sum(dim=1) @ places, weights.sum(dim=0) @ places)
        assert middle == pytest.approx([4 * row + 16.5, 4 * column + 16.5], abs=2)


def test_prediction_after_more_training_is_not_the_old_one(
    context: Context, pixels: Tensor
) -> None:
    algorithm = build(context)
    train(algorithm, pixels)
    batch = [normalised(pixels)]
    before = algorithm.predict(batch).maps["student_teacher"]
    train(algorithm, pixels)
    after = algorithm.predict(batch).maps["student_teacher"]
    assert not torch.allclose(before, after)
    loaded = build(context)
    loaded.predict(batch)
    loaded.load_state(algorithm.state())
    assert torch.equal(loaded.predict(batch).maps["student_teacher"], after)


def test_killed_training_resumes_to_the_same(context: Context, pixels: Tensor) -> None:
    straight = build(context)
    losses = train(straight, pixels, epochs=3)
    killed = build(context)
    train(killed, pixels, epochs=2)
    resumed = build(context)
    resumed.load_state({key: value.clone() for key, value in killed.state().items()})
    resumed.load_training_state(killed.training_state())
    assert train(resumed, pixels) == losses[2:]
    for key, value in straight.state().items():
        assert torch.equal(resumed.state()[key], value), key


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        state = teacher_state("small", 384, 1.0)
    meta = torch.device("meta")
    context = Context((256, 256), ((3, 256, 256),), 1, 0, meta, teacher=state)
    with torch.device("meta"):
        algorithm = create("efficientad", {}, context)
    assert isinstance(algorithm, EfficientAd)
    trained = sum(
        one.numel() for group in algorithm.optimizer.param_groups for one in group["params"]
    )
    assert trained == 4_267_392 + 1_096_320
    shapes = [
        output.shape
        for output in algorithm.network["teacher"](torch.zeros(1, 3, 256, 256, device=meta)).split(
            1
        )
    ]
    assert shapes == [(1, 384, 56, 56)]


def test_a_teacher_is_needed(context: Context) -> None:
    with pytest.raises(ValueError, match="needs a teacher"):
        build(replace(context, teacher=None))
