"""Images and masks become the arrays that the protocol describes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.artifacts.files import StageError
from stages.artifacts.images import (
    RESAMPLING,
    crop_box,
    evaluation_mask,
    load_image,
    load_mask,
    open_image,
)

RNG = np.random.default_rng(0)


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def smooth(height: int, width: int) -> np.ndarray:
    """An RGB image whose channels are ramps, so that every place has its own colour."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = rows / height * 255, columns / width * 255
    return np.stack([red, green, (red + green) / 2], axis=2).astype(np.uint8)


class TestCropBox:
    """The box is centred and has the fraction of each side."""

    @pytest.mark.parametrize(
        ("size", "crop", "box"),
        [
            ((100, 60), 1.0, (0, 0, 100, 60)),
            ((100, 60), 0.5, (25, 15, 75, 45)),
            ((256, 256), 0.875, (16, 16, 240, 240)),
            ((5, 3), 0.8, (0.5, 0.3, 4.5, 2.7)),
        ],
    )
    def test_box(self, size, crop, box):
        assert crop_box(size, crop) == pytest.approx(box)


class TestLoadImage:
    """RGB, one resampling for crop and size, antialiased."""

    def test_no_resampling_changes_nothing(self, tmp_path):
        array = RNG.integers(0, 256, (64, 64, 3), np.uint8)
        loaded = load_image(save(tmp_path / "x.png", array), 64, 1.0, "bilinear")
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, array)

    @pytest.mark.parametrize("interpolation", RESAMPLING)
    def test_crop_is_resizing_then_cropping(self, tmp_path, interpolation):
        """The papers resize to 256 and cut 224: the same geometry, and nearly the same values."""
        path = save(tmp_path / "x.png", smooth(300, 500))
        loaded = load_image(path, 224, 0.875, interpolation).astype(float)
        resized = Image.open(path).resize((256, 256), RESAMPLING[interpolation])
        expected = np.asarray(resized.crop((16, 16, 240, 240))).astype(float)
        assert np.abs(loaded - expected).max() <= 2
        shifted = np.asarray(resized.crop((20, 16, 244, 240))).astype(float)
        assert np.abs(loaded - shifted).max() > 2, "four pixels would be seen"

    def test_axes_are_not_swapped(self, tmp_path):
        array = np.zeros((40, 80, 3), np.uint8)
        array[:10] = 255  # the upper quarter
        loaded = load_image(save(tmp_path / "x.png", array), 16, 1.0, "bilinear")
        assert loaded.shape == (16, 16, 3)
        assert loaded[0].min() == 255
        assert loaded[8:].max() == 0

    def test_is_antialiased(self, tmp_path):
        board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
        loaded = load_image(save(tmp_path / "x.png", board), 32, 1.0, "bilinear")
        assert np.abs(loaded.astype(int) - 127).max() <= 3

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
    def test_colour_modes(self, tmp_path, mode):
        grey = np.where(np.arange(1024).reshape(32, 32) % 64 < 32, 255, 0).astype(np.uint8)
        path = save(tmp_path / "x.png", grey, mode)
        assert open_image(path).mode == mode
        expected = np.repeat(grey[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(load_image(path, 32, 1.0, "bilinear"), expected)

    def test_alpha_is_dropped(self, tmp_path):
        array = np.full((16, 16, 4), 200, np.uint8)
        array[:, :, 3] = 0
        assert load_image(save(tmp_path / "x.png", array), 16, 1.0, "bilinear").min() == 200

    def test_palette_colours(self, tmp_path):
        array = np.zeros((16, 16, 3), np.uint8)
        array[:8] = (250, 10, 90)
        Image.fromarray(array).quantize(4).save(tmp_path / "x.png")
        np.testing.assert_array_equal(load_image(tmp_path / "x.png", 16, 1.0, "bilinear"), array)

    @pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
    def test_damaged(self, tmp_path, damage):
        path = save(tmp_path / "x.png", RNG.integers(0, 256, (64, 64, 3), np.uint8))
        content = path.read_bytes()
        path.write_bytes({"truncated": content[:5000], "text": b"<html>", "empty": b""}[damage])
        with pytest.raises(StageError, match=r"x\.png: cannot be decoded .*; replace the file"):
            load_image(path, 64, 1.0, "bilinear")

    def test_damaged_header_that_claims_a_huge_image(self, tmp_path):
        path = tmp_path / "x.bmp"
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path)
        content = bytearray(path.read_bytes())
        content[20] = 255  # the width's third byte: 16 million pixels
        path.write_bytes(content)
        with pytest.raises(StageError, match=r"x\.bmp: cannot be decoded"):
            open_image(path)

    def test_missing(self, tmp_path):
        with pytest.raises(StageError, match=r"x\.png: no such file"):
            open_image(tmp_path / "x.png")


MASK = np.zeros((20, 30), bool)
MASK[3:7, 10:25] = True


class TestLoadMask:
    """Every value above 0 is anomalous, however the mask is stored."""

    @pytest.mark.parametrize("value", [1, 2, 100, 127, 128, 254, 255])
    def test_every_value_counts(self, tmp_path, value):
        path = save(tmp_path / "m.png", (MASK * value).astype(np.uint8))
        np.testing.assert_array_equal(load_mask(path), MASK)

    def test_several_values_in_one_mask(self, tmp_path):
        values = np.zeros((16, 16), np.uint8)
        values.flat[1:] = np.arange(1, 256)
        path = save(tmp_path / "m.png", values)
        assert load_mask(path).sum() == 255
        assert not load_mask(path)[0, 0]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
    def test_colour_modes(self, tmp_path, mode):
        array = MASK.astype(np.uint8) * 255
        if mode == "I;16":
            Image.fromarray(array.astype(np.uint16)).save(tmp_path / "m.png")
        else:
            save(tmp_path / "m.png", array, mode)
        assert open_image(tmp_path / "m.png").mode == mode
        mask = load_mask(tmp_path / "m.png")
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, MASK)

    @pytest.mark.parametrize("channel", [0, 1, 2])
    def test_one_colour_channel(self, tmp_path, channel):
        array = np.zeros((20, 30, 3), np.uint8)
        array[MASK, channel] = 1
        np.testing.assert_array_equal(load_mask(save(tmp_path / "m.png", array)), MASK)

    @pytest.mark.parametrize("inverted", [False, True])
    def test_palette_numbers_are_no_values(self, tmp_path, inverted):
        """A palette may number white 0: optimised PNGs do."""
        indices = MASK.astype(np.uint8) ^ inverted
        image = Image.fromarray(indices).convert("P")
        black_white = [0, 0, 0, 255, 255, 255]
        image.putpalette(black_white[::-1] if inverted else black_white)
        image.save(tmp_path / "m.png")
        assert open_image(tmp_path / "m.png").mode == "P"
        np.testing.assert_array_equal(load_mask(tmp_path / "m.png"), MASK)

    def test_palette_made_by_quantising(self, tmp_path):
        Image.fromarray(MASK.astype(np.uint8) * 255).quantize(2).save(tmp_path / "m.png")
        np.testing.assert_array_equal(load_mask(tmp_path / "m.png"), MASK)

    @pytest.mark.parametrize("alpha", [0, 255])
    def test_alpha_marks_nothing(self, tmp_path, alpha):
        array = np.zeros((8, 8, 4), np.uint8)
        array[:, :, 3] = alpha
        assert not load_mask(save(tmp_path / "m.png", array)).any()


class TestEvaluationMask:
    """Nearest neighbour: masks stay two-valued and are cropped as images are."""

    def test_own_resolution_keeps_one_pixel(self):
        for place in ((0, 0), (37, 5), (63, 63)):
            mask = np.zeros((64, 64), bool)
            mask[place] = True
            np.testing.assert_array_equal(evaluation_mask(mask, 64, 1.0), mask)

    @pytest.mark.parametrize("factor", [2, 3, 4])
    def test_reduction_takes_the_centre_pixel(self, factor):
        """The rule of PIL, cv2 and torch differ at even factors; ours is the pixel centre's."""
        mask = RNG.random((16 * factor, 16 * factor)) > 0.5
        centre = factor // 2
        np.testing.assert_array_equal(
            evaluation_mask(mask, 16, 1.0), mask[centre::factor, centre::factor]
        )

    def test_enlargement_repeats(self):
        mask = RNG.random((8, 8)) > 0.5
        np.testing.assert_array_equal(
            evaluation_mask(mask, 32, 1.0), mask.repeat(4, axis=0).repeat(4, axis=1)
        )

    def test_both_sides_are_brought_to_the_size(self):
        mask = np.zeros((40, 80), bool)
        mask[:20] = True
        small = evaluation_mask(mask, 16, 1.0)
        assert small[:8].all()
        assert not small[8:].any()

    def test_crop_is_the_images(self, tmp_path):
        array = np.zeros((160, 160), np.uint8)
        array[40:72, 56:88] = 255
        image = load_image(save(tmp_path / "x.png", array), 64, 0.8, "bilinear")[:, :, 0]
        mask = evaluation_mask(array > 0, 64, 0.8)
        np.testing.assert_array_equal(image > 127, mask)
        assert mask.sum() == 16 * 16
        assert mask[12:28, 20:36].all()

    def test_share_is_kept(self):
        mask = np.zeros((500, 500), bool)
        mask[100:300, 150:400] = True
        assert evaluation_mask(mask, 256, 1.0).mean() == pytest.approx(mask.mean(), abs=0.003)
