"""Tests of the renderer of the synthetic demo data set."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.demo_images import CATEGORIES, contact_sheet, kit, write_category

SIZE = 128
CASES = [(name, defect) for name, what in CATEGORIES.items() for defect in what.defects]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.png"))
    }


def _render(category: str, seed: int, defect: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    return CATEGORIES[category].render(np.random.default_rng(seed), defect, SIZE)


@pytest.mark.parametrize("category", CATEGORIES)
def test_layout_counts_and_same_bytes(category: str, tmp_path: Path) -> None:
    count = write_category(tmp_path / "a", category, 7, SIZE, 2, 1, 1)
    assert count == 2 + 1 + 3
    files = _files(tmp_path / "a")
    expected = {"train/good/000.png", "train/good/001.png", "test/good/000.png"}
    for defect in CATEGORIES[category].defects:
        expected.add(f"test/{defect}/000.png")
        expected.add(f"ground_truth/{defect}/000_mask.png")
    assert set(files) == expected
    write_category(tmp_path / "b", category, 7, SIZE, 2, 1, 1)
    assert _files(tmp_path / "b") == files


def test_images_do_not_depend_on_the_counts(tmp_path: Path) -> None:
    write_category(tmp_path / "few", "weave", 0, SIZE, 1, 1, 1)
    write_category(tmp_path / "more", "weave", 0, SIZE, 2, 2, 2)
    few, more = _files(tmp_path / "few"), _files(tmp_path / "more")
    assert few.items() <= more.items()
    assert len(set(more.values())) == len(more)


def test_files_are_plain_rgb_and_binary_masks(tmp_path: Path) -> None:
    write_category(tmp_path / "kit", "kit", 0, SIZE, 1, 1, 1)
    for path in (tmp_path / "kit").rglob("*.png"):
        image = Image.open(path)
        assert image.size == (SIZE, SIZE)
        assert image.info == {}
        if "ground_truth" in path.parts:
            assert image.mode == "L"
            assert set(np.unique(np.asarray(image))) == {0, 255}
        else:
            assert image.mode == "RGB"


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_images_differ_and_have_empty_masks(category: str) -> None:
    first, mask = _render(category, 0)
    second, _ = _render(category, 1)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert mask.shape == (SIZE, SIZE)
    assert mask.dtype == np.bool_
    assert not mask.any()
    assert (first != second).mean() > 0.5


@pytest.mark.parametrize(("category", "defect"), CASES)
def test_defect_differs_from_its_clean_twin_inside_the_mask(category: str, defect: str) -> None:
    for seed in range(4):
        image, mask = _render(category, seed, defect)
        twin, _ = _render(category, seed)
        assert image.shape == (SIZE, SIZE, 3)
        assert image.dtype == np.uint8
        assert mask.shape == (SIZE, SIZE)
        assert 0 < mask.mean() < 0.4
        change = np.abs(image.astype(float) - twin).mean(axis=2)
        assert change[mask].mean() > 2
        assert change[mask].mean() > 10 * change[~mask].mean()


def test_kit_counts() -> None:
    rule = Counter(bolt=1, washer=3, nut=2)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        good = kit.lay_out(rng)
        assert Counter(part.kind for part in good) == rule
        assert [part.finish for part in good[1:4]] == ["brass", "steel", "black"]
        fewer, lost = kit.break_rule(good, "missing_part", rng)
        assert len(fewer) == 5
        assert [part for part in good if part not in fewer] == lost
        more, extra = kit.break_rule(good, "extra_part", rng)
        assert len(more) == 7
        assert [part for part in more if part not in good] == extra
        swapped, wrong = kit.break_rule(good, "swapped", rng)
        assert Counter(part.kind for part in swapped) == rule
        assert {part for part in swapped if part not in good} <= set(wrong)
        assert swapped != good


def test_unknown_defect_is_refused() -> None:
    for category in CATEGORIES:
        with pytest.raises((KeyError, ValueError)):
            _render(category, 0, "no_such_defect")


def test_contact_sheet_has_a_row_per_category(tmp_path: Path) -> None:
    for category in ("weave", "flange"):
        write_category(tmp_path / category, category, 0, 64, 2, 0, 1)
    one = contact_sheet(tmp_path, ["weave"], columns=5, tile=64)
    both = contact_sheet(tmp_path, ["weave", "flange"], columns=5, tile=64)
    assert one.mode == both.mode == "RGB"
    assert one.width == both.width > 5 * 64
    assert both.height > one.height > 64
    pixels = np.asarray(both).astype(int)
    assert ((pixels[..., 0] == 230) & (pixels[..., 1] == 30)).any()
