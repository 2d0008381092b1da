"""Synthetic anomalies: Perlin noise against a loop, the rest by what it must and must not change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import threshold_otsu
from torch import Tensor

from algorithms.blocks import perlin, synthetic, textures
from algorithms.blocks.synthetic import (
    augment,
    background,
    blend,
    cut_paste,
    foreground,
    generated_texture,
    noise_patches,
    perlin_mask,
    perlin_noise,
    random_rotation,
    scar,
    shuffle_tiles,
    texture_source,
)

SIZE = (96, 80)


@pytest.fixture
def image() -> Tensor:
    """An image without two equal pixels, to see every change of one."""
    torch.manual_seed(5)
    return torch.rand(3, *SIZE)


class Photographs:
    """Two textures of one colour each, as ``context.textures`` gives them."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.images = torch.tensor([0.25, 0.75])[:, None, None, None].expand(2, 3, *size)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int]) -> Tensor:
        return self.images[list(rows)]


MAKERS: dict[str, Callable[[Tensor], Any]] = {
    "perlin_noise": lambda image: perlin_noise(SIZE, (4, 8)),
    "perlin_mask": lambda image: perlin_mask(SIZE),
    "generated_texture": lambda image: generated_texture(SIZE),
    "texture_source": lambda image: texture_source(Photographs((40, 40)), SIZE),
    "random_rotation": lambda image: random_rotation(image, 45),
    "augment": augment,
    "shuffle_tiles": lambda image: shuffle_tiles(image, (8, 8)),
    "cut_paste": cut_paste,
    "scar": scar,
    "noise_patches": noise_patches,
}


@pytest.mark.parametrize("name", MAKERS)
def test_seed_decides_and_the_input_stays(name: str, image: Tensor) -> None:
    before = image.clone()

    def run(seed: int) -> tuple[Tensor, ...]:
        torch.manual_seed(seed)
        result = MAKERS[name](image)
        return result if isinstance(result, tuple) else (result,)

    first, again, others = run(0), run(0), [run(seed) for seed in range(1, 9)]
    assert torch.equal(image, before)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
        assert one.shape[-2:] == SIZE
    assert any(not torch.equal(first[0], other[0]) for other in others)
    if name not in ("perlin_noise", "perlin_mask"):
        for result in [first, *others]:
            assert result[0].shape == (3, *SIZE) and result[0].dtype == torch.float32
            assert float(result[0].min()) >= 0 and float(result[0].max()) <= 1


# --- Perlin ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "cells"), [((16, 24), (4, 2)), ((15, 20), (4, 1)), ((8, 8), (8, 8))]
)
def test_noise_against_a_loop(size: tuple[int, int], cells: tuple[int, int]) -> None:
    torch.manual_seed(3)
    angle = 2 * math.pi * torch.rand(cells[0] + 1, cells[1] + 1).double().numpy()
    expected = np.zeros(size)

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    for row, column in itertools.product(*map(range, size)):
        y, x = row * cells[0] / size[0], column * cells[1] / size[1]
        for corner_y, corner_x in itertools.product((int(y), int(y) + 1), (int(x), int(x) + 1)):
            dy, dx = y - corner_y, x - corner_x
            gradient = angle[corner_y, corner_x]
            value = math.sin(gradient) * dy + math.cos(gradient) * dx
            expected[row, column] += fade(1 - abs(dy)) * fade(1 - abs(dx)) * value
    torch.manual_seed(3)
    np.testing.assert_allclose(perlin_noise(size, cells), math.sqrt(2) * expected, atol=2e-6)


def slow_mask(rng: np.random.Generator, side: int) -> np.ndarray:
    """As DRAEM makes masks: gradients gathered for every pixel, four products, rotation by SciPy."""
    cells = 2 ** rng.integers(0, 6, 2)
    angle = rng.uniform(0, 2 * np.pi, cells + 1)
    y, x = np.meshgrid(*(np.arange(side) * count / side for count in cells), indexing="ij")
    total = np.zeros((side, side))
    fade = np.polynomial.Polynomial([0, 0, 0, 10, -15, 6])
    for down, across in itertools.product((0, 1), (0, 1)):
        corner = angle[y.astype(int) + down, x.astype(int) + across]
        dy, dx = y % 1 - down, x % 1 - across
        weight = fade(1 - np.abs(dy)) * fade(1 - np.abs(dx))
        total += weight * (np.sin(corner) * dy + np.cos(corner) * dx)
    settings: dict[str, Any] = {"reshape": False, "order": 1, "mode": "grid-constant"}
    return ndimage.rotate(np.sqrt(2) * total, rng.uniform(-90, 90), **settings) > 0.5


def test_coverage_of_masks_as_of_an_independent_generator() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ours = np.array([float(perlin_mask((64, 64)).float().mean()) for _ in range(400)])
    others = np.array([slow_mask(rng, 64).mean() for _ in range(400)])
    error = np.hypot(ours.std(), others.std()) / np.sqrt(400)
    assert abs(ours.mean() - others.mean()) < 3 * error
    assert error < 0.12 * others.mean()  # otherwise the line above would say little
    assert abs((ours == 0).mean() - (others == 0).mean()) < 0.06
    assert 0.02 < ours.mean() < 0.12


def test_masks_exponents_bound_their_grain() -> None:
    torch.manual_seed(0)
    coarse = sum(ndimage.label(perlin_mask((64, 64), (1, 1)))[1] for _ in range(60))
    fine = sum(ndimage.label(perlin_mask((64, 64), (5, 5)))[1] for _ in range(60))
    assert coarse < 60 * 4 < 60 * 40 < fine
    assert not perlin_mask((64, 64), threshold=2.0).any()


def test_rotation(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perlin, "uniform", lambda low, high: high)
    square = image[:, :80]
    torch.testing.assert_close(
        random_rotation(square, 90), square.rot90(1, (1, 2)), atol=1e-4, rtol=0
    )
    turned = random_rotation(torch.ones(1, 101, 101), 45)[0]
    assert turned[0, 0] == 0 and turned[50, 50] == 1
    octagon = 2 * (math.sqrt(2) - 1)  # what a square shares with itself turned by 45 degrees
    assert float(turned.mean()) == pytest.approx(octagon, abs=0.003)


# --- textures -------------------------------------------------------------------------------------


def test_textures_vary() -> None:
    torch.manual_seed(0)
    made = torch.stack([generated_texture((64, 64)) for _ in range(60)])
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    contrast = made.flatten(1).std(dim=1)
    assert float(contrast.min()) > 0.01, "none is a plain surface"
    means = made.mean(dim=(2, 3))
    assert (means.std(dim=0) > 0.1).all(), "nor do they share a colour"
    steps = (made[..., 1:] - made[..., :-1]).abs().mean(dim=(1, 2, 3)) / contrast
    assert float(steps.max()) > 3 * float(steps.min()), "nor a grain"


@pytest.mark.parametrize("make", [textures.fractal, textures.waves, textures.cells])
def test_patterns_fill_their_range(make: Any) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        field = make((40, 56))
        assert field.shape == (40, 56)
        assert float(field.min()) == 0 and float(field.max()) == pytest.approx(1)


def test_cells_find_the_nearest_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textures, "log_uniform", lambda low, high: 10.0)
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(1))  # distances
    torch.manual_seed(0)
    field = textures.cells((40, 50))
    torch.manual_seed(0)
    grid = torch.rand(3, 6, 7).numpy()[:2]
    points = (grid + np.indices((6, 7)) - 1).reshape(2, -1).T * 10
    pixels = np.indices((40, 50)).reshape(2, -1).T
    nearest = np.linalg.norm(pixels[:, None] - points, axis=2).min(axis=1).reshape(40, 50)
    expected = (nearest - nearest.min()) / (nearest.max() - nearest.min())
    np.testing.assert_allclose(field, expected, atol=1e-4)


def test_texture_source() -> None:
    torch.manual_seed(0)
    values = {float(texture_source(Photographs((30, 50)), SIZE).mean()) for _ in range(20)}
    assert values == {0.25, 0.75}
    assert texture_source(Photographs((30, 50)), SIZE).shape == (3, *SIZE)
    torch.manual_seed(1)
    generated = texture_source(None, SIZE)
    torch.manual_seed(1)
    assert torch.equal(generated, generated_texture(SIZE))


# --- DRAEM's operations ---------------------------------------------------------------------------


def test_augment_takes_distinct_operations(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(synthetic.OPERATIONS) == 10
    called: list[int] = []

    def operation(number: int) -> Callable[[Tensor], Tensor]:
        return lambda image: (called.append(number), image)[1]

    monkeypatch.setattr(synthetic, "OPERATIONS", [operation(n) for n in range(10)])
    torch.manual_seed(0)
    seen: list[tuple[int, ...]] = []
    for _ in range(400):
        called.clear()
        augment(image)
        seen.append(tuple(called))
    assert all(len(set(one)) == 3 for one in seen)
    counts = np.bincount(np.concatenate(seen), minlength=10)
    assert (np.abs(counts - 120) < 4 * np.sqrt(120 * 0.7)).all()
    assert len({one for one in seen if set(one) == set(seen[0])}) >= 1
    assert any(list(one) != sorted(one) for one in seen)


@pytest.mark.parametrize("number", range(10))
def test_every_operation_changes_the_image_and_keeps_its_range(image: Tensor, number: int) -> None:
    torch.manual_seed(number)
    results = [synthetic.OPERATIONS[number](image).clamp(0, 1) for _ in range(6)]
    assert any(not torch.equal(result, image) for result in results)
    for result in results:
        assert result.shape == image.shape and bool(torch.isfinite(result).all())


def test_hue_and_saturation_against_scikit_image(
    image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifts = iter([40.0, -30.0])
    monkeypatch.setattr(synthetic, "uniform", lambda low, high: next(shifts))
    result = synthetic._hue_and_saturation(image)
    hsv = rgb2hsv(image.permute(1, 2, 0).numpy())
    hsv[..., 0] = (hsv[..., 0] + 40 / 255) % 1
    hsv[..., 1] = np.clip(hsv[..., 1] - 30 / 255, 0, 1)
    np.testing.assert_allclose(result.permute(1, 2, 0), hsv2rgb(hsv), atol=2e-3)
    grey = torch.full((3, 8, 8), 0.4)
    shifts = iter([40.0, 30.0])
    torch.testing.assert_close(synthetic._hue_and_saturation(grey), grey)


def test_autocontrast_against_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).normal(120, 25, (60, 50, 3)).clip(0, 255).astype(np.uint8)
    monkeypatch.setattr(torch, "randint", lambda *args: torch.tensor(10))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    result = synthetic._autocontrast(tensor).clamp(0, 1).permute(1, 2, 0)
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(pixels), 10)) / 255
    np.testing.assert_allclose(result, expected, atol=1.01 / 255)  # Pillow truncates
    flat = torch.full((3, 8, 8), 0.3)
    assert torch.equal(synthetic._autocontrast(flat), flat)


# --- sources and masks ----------------------------------------------------------------------------


def test_tiles_are_shuffled_whole(image: Tensor) -> None:
    torch.manual_seed(0)
    rows, columns = 4, 8
    shuffled = shuffle_tiles(image, (rows, columns))

    def tiles(picture: Tensor) -> set[bytes]:
        height, width = SIZE[0] // rows, SIZE[1] // columns
        return {
            picture[:, r * height : (r + 1) * height, c * width : (c + 1) * width]
            .contiguous()
            .numpy()
            .tobytes()
            for r, c in itertools.product(range(rows), range(columns))
        }

    assert tiles(shuffled) == tiles(image)
    assert not torch.equal(shuffled, image)
    assert torch.equal(shuffle_tiles(image, (1, 1)), image)
    with pytest.raises(ValueError, match="7 x 8 tiles do not divide an image of 96 x 80"):
        shuffle_tiles(image, (7, 8))


def test_blend(image: Tensor) -> None:
    torch.manual_seed(0)
    source, mask = torch.rand(3, *SIZE), torch.rand(SIZE) < 0.3
    m = mask.numpy()
    expected = image.numpy() * (1 - m) + m * (0.3 * source.numpy() + 0.7 * image.numpy())
    result = blend(image, source, mask, 0.3)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert torch.equal(result[:, ~mask], image[:, ~mask])


def test_foreground() -> None:
    torch.manual_seed(0)
    thing = torch.zeros(SIZE, dtype=torch.bool)
    thing[20:60, 30:50] = True
    picture = (
        (torch.where(thing, 0.8, 0.3) + 0.05 * torch.randn(SIZE)).expand(3, -1, -1).clamp(0, 1)
    )
    assert torch.equal(foreground(picture, 0.55, bright=True), thing)
    assert torch.equal(foreground(picture, 0.55, bright=False), ~thing)
    assert float((foreground(picture, None, bright=True) == thing).float().mean()) > 0.99
    grey = picture[0].numpy()
    np.testing.assert_array_equal(
        foreground(picture, None, bright=False), grey <= threshold_otsu(grey)
    )
    colour = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 4, 4)
    assert (
        foreground(colour, 0.29, bright=True).all()
        and not foreground(colour, 0.31, bright=True).any()
    )


def test_background_against_scipy() -> None:
    picture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, 64, 72)), (0, 6, 6))
    picture = np.clip(0.5 + 2.5 * picture / picture.std() * 0.3, 0, 1).astype(np.float32)
    grey = picture.mean(axis=0)
    outside = ((grey < 30 / 255) | (grey > 220 / 255)).astype(np.uint8)
    median = ndimage.median_filter(outside, 7, mode="nearest")
    expected = ndimage.maximum_filter(median, 19, mode="constant", cval=0) > 0
    result = background(torch.from_numpy(picture))
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(result, expected)


# --- CutPaste and CDO -----------------------------------------------------------------------------


def box(mask: Tensor) -> tuple[int, int]:
    """Height and width of a mask's bounding box."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


@pytest.mark.parametrize("name", ["cut_paste", "scar", "noise_patches"])
def test_mask_says_where_pixels_changed(name: str, image: Tensor) -> None:
    torch.manual_seed(0)
    for _ in range(30):
        result, mask = MAKERS[name](image)
        assert mask.shape == SIZE and mask.dtype == torch.bool
        changed = (result != image).any(dim=0)
        assert torch.equal(changed & mask, changed), "nothing outside of the mask"
        if mask.any():
            assert float(changed[mask].float().mean()) > 0.95


def test_cut_paste_pastes_a_patch_of_the_image(image: Tensor) -> None:
    torch.manual_seed(0)
    shares, ratios = [], []
    for _ in range(400):
        result, mask = cut_paste(image, jitter=0)
        height, width = box(mask)
        assert mask.sum() == height * width, "a full rectangle"
        shares.append(height * width / mask.numel())
        ratios.append(math.log(width / height))
    assert 0.018 < min(shares) < 0.03 and 0.14 < max(shares) < 0.155
    assert np.mean(shares) == pytest.approx(0.085, abs=0.007)
    bound = math.log(1 / 0.3)
    assert max(np.abs(ratios)) < bound + 0.15
    assert np.std(ratios) == pytest.approx(2 * bound / math.sqrt(12), rel=0.1)
    top, left = (int(axis.min()) for axis in mask.nonzero(as_tuple=True))
    patch = result[:, top : top + height, left : left + width]
    windows = image.unfold(1, height, 1).unfold(2, width, 1)
    assert (windows == patch[:, None, None]).all(dim=(0, 3, 4)).any()


def test_jitter_changes_colours_a_little() -> None:
    flat = torch.tensor([0.6, 0.5, 0.4])[:, None, None].expand(3, 64, 64)
    torch.manual_seed(0)
    changes = []
    for _ in range(50):
        result, mask = cut_paste(flat)
        changes.append(float((result - flat)[:, mask].abs().max()))
    assert np.mean(changes) > 0.02 and max(changes) < 0.2


def test_scar_keeps_its_bounds() -> None:
    picture = torch.rand(3, 128, 128)
    torch.manual_seed(0)
    areas, places = [], torch.zeros(128, 128)
    for _ in range(400):
        _, mask = scar(picture)
        assert max(box(mask)) <= math.hypot(16, 25) + 2
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        areas.append(int(mask.sum()))
        places += mask
    # Sides are independent: the mean area is the product of the means, 9 x 17.5.
    assert np.mean(areas) == pytest.approx(9 * 17.5, rel=0.1)
    assert min(areas) >= 15 and max(areas) <= 16 * 25 * 1.1
    assert all(float(places[part].sum()) > 0 for part in (slice(0, 4), slice(124, 128)))


def test_upright_scar_is_a_rectangle() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        _, mask = scar(torch.rand(3, 64, 64), rotation=0.0)
        height, width = box(mask)
        assert int(mask.sum()) == height * width
        assert 10 <= height <= 25 and 2 <= width <= 16


def test_noise_patches() -> None:
    picture = torch.full((3, 256, 256), 2.0)  # no noise has this value
    torch.manual_seed(0)
    empty, sides = 0, []
    for _ in range(150):
        result, mask = noise_patches(picture)
        assert torch.equal((result != 2).all(dim=0), mask)
        assert torch.equal((result != 2).any(dim=0), mask)
        empty += not mask.any()
        labels, found = ndimage.label(mask)
        assert found <= 4
        assert int(mask.sum()) <= 4 * 48 * 48
        for part in ndimage.find_objects(labels):
            rows, columns = (piece.stop - piece.start for piece in part)
            if (labels[part] > 0).all():  # not two that overlap
                sides += [rows, columns]
        values = (result[:, mask] * 255).round()
        if mask.any():
            assert float(values.min()) >= 0 and float(values.max()) <= 254
            assert values.mean() == pytest.approx(127, abs=12)
    assert empty / 150 == pytest.approx(0.2, abs=0.1)
    assert min(sides) == 12 and sorted(sides)[-3] <= 48
    assert np.mean(sides) == pytest.approx(30, abs=2)


def test_noise_patches_leave_out_the_background() -> None:
    picture, skip = torch.full((3, 128, 128), 2.0), torch.ones(128, 128, dtype=torch.bool)
    torch.manual_seed(0)
    assert not any(noise_patches(picture, skip=skip)[1].any() for _ in range(10))
    skip[50:70, 50:70] = False
    masks = torch.stack([noise_patches(picture, skip=skip)[1] for _ in range(40)])
    reached = masks.any(dim=0).nonzero()
    assert len(reached) and int(reached.min()) >= 50 - 12 and int(reached.max()) < 70 + 12
    assert float(masks.any(dim=(1, 2)).float().mean()) > 0.6
