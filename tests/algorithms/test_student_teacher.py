"""S-T: what students learn, units of descriptors and maps, scales, and positions of a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.base import Context, create
from algorithms.blocks.dense_patches import PatchNetwork, channel_counts, surround
from algorithms.student_teacher import (
    Hyperparameters,
    Moments,
    draw_part,
    error_and_uncertainty,
    split_teachers,
)

SIDE = 24
MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)  # of the algorithm's images


def teacher_tensors(p: int, dimensions: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(p)
    network = PatchNetwork(p, channel_counts(p, 1 / 32, dimensions))
    return {f"patches.{key}": value for key, value in network.state_dict().items()} | {
        "decode.weight": torch.zeros(2, dimensions),
        "receptive_field": torch.tensor(p),
        "mean": torch.tensor([0.5, 0.5, 0.5])[:, None, None],
        "std": torch.tensor([0.25, 0.5, 1.0])[:, None, None],
    }


def algorithm(*scales: int, seed: int = 0, **values: Any) -> Any:
    parts = [teacher_tensors(p) for p in scales]
    teacher = {f"{n}.{key}": value for n, part in enumerate(parts) for key, value in part.items()}
    context = Context(
        (SIDE, SIDE), ((3, SIDE, SIDE),), 6, 0, torch.device("cpu"), mean=MEAN, std=STD,
        teacher=parts[0] if len(scales) == 1 else teacher,
    )  # fmt: skip
    torch.manual_seed(seed)
    return create("student_teacher", values, context)


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 3, SIDE, SIDE) + torch.randn(3, SIDE, SIDE)


def batches(images: Tensor, size: int = 2) -> list[list[Tensor]]:
    return [[part] for part in images.split(size)]


def described(network: PatchNetwork, images: Tensor, stride: int = 1) -> np.ndarray:
    """Descriptors (N, D, h, w) of images in units of the teacher, by way of pixels in [0, 1]."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    teacher = teacher_tensors(17)
    own = (images * std + mean - teacher["mean"]) / teacher["std"]
    padded = surround(own, network.receptive_field)
    first = (stride - 1) // 2
    with torch.no_grad():
        return network.slide(padded[:, :, first:, first:], stride).double().numpy()


def test_paper_has_three_students_everywhere() -> None:
    values = Hyperparameters()
    assert (values.students, values.stride, values.training_stride) == (3, 1, 1)
    assert values.window is None


def test_teachers_are_told_apart() -> None:
    one = {"receptive_field": torch.tensor(17), "patches.x": torch.ones(1)}
    assert split_teachers(one) == [one]
    many = {f"{number}.{key}": value for number in (10, 2, 0) for key, value in one.items()}
    many["2.receptive_field"] = torch.tensor(33)
    assert [int(part["receptive_field"]) for part in split_teachers(many)] == [17, 33, 17]
    assert split_teachers(many)[0].keys() == one.keys()


def test_error_and_uncertainty(rng: np.random.Generator) -> None:
    teacher, students = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(3, 2, 5, 3, 4))
    mean = students.mean(axis=0)
    error = ((mean - teacher) ** 2).sum(axis=1)
    uncertainty = (students**2).sum(axis=2).mean(axis=0) - (mean**2).sum(axis=1)
    result = error_and_uncertainty(torch.from_numpy(teacher), torch.from_numpy(students))
    np.testing.assert_allclose(result.numpy(), [error, uncertainty])


def test_moments(rng: np.random.Generator) -> None:
    values = (rng.normal(size=(4, 90)) * [[1], [1e-3], [50], [0]] + 7).astype(np.float32)
    moments = Moments()
    for part in torch.from_numpy(values).split(40, dim=1):
        moments.add(part)
    mean, std = (one.numpy() for one in moments.result())
    np.testing.assert_allclose(mean, values.mean(axis=1, dtype=np.float64), rtol=1e-6)
    expected = values.astype(np.float64).std(axis=1)
    np.testing.assert_allclose(std[:3], expected[:3], rtol=1e-5)
    assert std[3] == 1  # constant: not divided by rounding errors


@pytest.mark.parametrize("stride", [1, 4])
def test_descriptors_are_normalised_over_all_training_pixels(images: Tensor, stride: int) -> None:
    model = algorithm(17, 33, stride=stride, training_stride=8)
    model.train_one_epoch(batches(images))
    for scale in model.scales:
        rows = described(scale.teacher, images, stride).swapaxes(0, 1).reshape(6, -1)
        np.testing.assert_allclose(
            scale.descriptor_mean.flatten(), rows.mean(axis=1), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(scale.descriptor_std.flatten(), rows.std(axis=1), rtol=1e-4)


def test_loss_is_the_students_squared_distance(images: Tensor) -> None:
    model = algorithm(17, 33)
    model.train_one_epoch(batches(images))
    expected = 0.0
    for scale in model.scales:
        target = described(scale.teacher, images)
        shift, unit = scale.descriptor_mean.numpy(), scale.descriptor_std.numpy()
        for student in scale.students:
            difference = described(student, images) - (target - shift) / unit
            expected += (difference**2).sum(axis=1).mean()
    assert model.loss([images]).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("stride", "window", "count"), [(4, None, 6), (16, None, 2), (1, 9, 9), (5, 12, 3), (8, 99, 3)]
)
def test_steps_meet_every_pixel_in_the_end(stride: int, window: int | None, count: int) -> None:
    torch.manual_seed(0)
    seen: list[int] = []
    for _ in range(300):
        start, length = draw_part(SIDE, stride, window)
        pixels = range(start, start + length, stride)
        assert pixels[0] >= 0
        assert pixels[-1] < SIDE
        assert count - 1 <= len(pixels) <= count
        seen += pixels
    assert set(seen) == set(range(SIDE))


@pytest.mark.parametrize("stride", [1, 4])
def test_windows_see_borders_as_often_as_the_middle(stride: int) -> None:
    torch.manual_seed(0)
    side, draws = 64, 4000
    seen = np.zeros(side)
    for _ in range(draws):
        start, length = draw_part(side, stride, 17)
        seen[start : start + length : stride] += 1
    assert seen.min() > 0.65 * seen.mean()
    assert seen.max() < 1.7 * seen.mean()


@pytest.mark.parametrize("window", [None, 9])
def test_a_step_learns_from_the_pixels_drawn(images: Tensor, window: int | None) -> None:
    model = algorithm(17, training_stride=4, window=window)
    torch.manual_seed(5)
    result = model.loss([images]).item()
    torch.manual_seed(5)
    drawn = [draw_part(SIDE, 4, window) for _ in range(2)]
    rows, columns = (slice(start, start + length, 4) for start, length in drawn)
    scale, expected = model.scales[0], 0.0
    target = described(scale.teacher, images)[:, :, rows, columns]
    for student in scale.students:
        difference = described(student, images)[:, :, rows, columns] - target
        expected += (difference**2).sum(axis=1).mean()
    assert result == pytest.approx(expected, rel=1e-4)


def test_students_differ_and_the_teacher_stays(images: Tensor) -> None:
    model = algorithm(17)
    before = {key: value.clone() for key, value in model.state().items()}
    model.train_one_epoch(batches(images))
    after = model.state()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert not [key for key in changed if ".teacher." in key]
    assert {key for key in before if ".ensemble." in key} <= changed
    weights = [after[f"0.ensemble.{n}.convolutions.0.weight"] for n in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_loss_falls(images: Tensor) -> None:
    model = algorithm(17, learning_rate=3e-3)
    losses = [model.train_one_epoch(batches(images))["loss"] for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    assert losses[0] == pytest.approx(6, rel=0.3)  # of descriptors of unit variance


@pytest.mark.parametrize("stride", [1, 4])
def test_map(images: Tensor, stride: int) -> None:
    model = algorithm(17, 33, stride=stride)
    model.train_one_epoch(batches(images[:4]))
    model.calibrate(batches(images[4:], 1))
    expected: Any = 0.0
    for scale in model.scales:
        shift, unit = scale.descriptor_mean.numpy(), scale.descriptor_std.numpy()

        def maps(part: Tensor, scale: Any = scale, shift: Any = shift, unit: Any = unit) -> Any:
            target = (described(scale.teacher, part, stride) - shift) / unit
            students = np.stack([described(one, part, stride) for one in scale.students])
            mean = students.mean(axis=0)
            error = ((mean - target) ** 2).sum(axis=1)
            return error, (students**2).sum(axis=2).mean(axis=0) - (mean**2).sum(axis=1)

        for held_out, tested in zip(maps(images[4:]), maps(images[:2]), strict=True):
            expected = expected + (tested - held_out.mean()) / held_out.std() / 2
    with torch.inference_mode():
        prediction = model.predict([images[:2]])
    result = prediction.maps["combined"].numpy()
    if stride == 4:  # the middle between grid points is their mean
        result = (result[:, 1::4, 1::4] + result[:, 2::4, 1::4] + result[:, 1::4, 2::4]
                  + result[:, 2::4, 2::4]) / 4  # fmt: skip
        result, expected = result[:, 1:-1, 1:-1], blurred(expected)[:, 1:-1, 1:-1]
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(prediction.scores["maximum"], prediction.maps["combined"].amax(dim=(1, 2)))


def blurred(grid: np.ndarray) -> np.ndarray:
    """Mean of the bilinear interpolation at 1/8 of a cell to either side, along both axes."""
    for axis in (1, 2):
        sides = np.roll(grid, 1, axis) + np.roll(grid, -1, axis)
        grid = 0.875 * grid + 0.0625 * sides
    return grid


def test_calibration_is_saved_and_training_does_not_notice(images: Tensor) -> None:
    model, other = algorithm(17), algorithm(17)
    for one in (model, other):
        one.train_one_epoch(batches(images[:4]))
    model.calibrate(batches(images[4:]))
    fresh = algorithm(17, seed=9)
    fresh.load_state(model.state())
    with torch.inference_mode():
        maps = [one.predict([images[:2]]).maps["combined"] for one in (model, fresh, other)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert model.train_one_epoch(batches(images)) == other.train_one_epoch(batches(images))
