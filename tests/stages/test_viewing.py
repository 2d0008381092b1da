"""Results in memory and in pictures: what is read, and what is shown of it."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.artifacts.files import write_json
from stages.artifacts.index import write_index
from stages.artifacts.maps import write_maps
from stages.index import build_index
from stages.viewing import (
    Category,
    Picture,
    Result,
    compare,
    curves,
    open_category,
    read_result,
    show,
)

SIZE = 32


@pytest.fixture
def category(tmp_path: Path) -> Category:
    """Two training images, two good ones, one with a bright corner."""
    folder = tmp_path / "data" / "nut"
    names = ("train/good/0", "train/good/1", "test/good/0", "test/good/1", "test/spot/0")
    for number, name in enumerate(names):
        pixels = np.full((SIZE, SIZE), 100, np.uint8)
        if "spot" in name:
            pixels[:8, :8] = 255
            mask = folder / "ground_truth" / "spot" / "0_mask.png"
            mask.parent.mkdir(parents=True)
            Image.fromarray((pixels == 255).astype(np.uint8)).save(mask)
        pixels[0, -1] = number  # no two images are the same
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    write_index(tmp_path / "nut.parquet", build_index(folder))
    fields: dict[str, Any] = {"size": SIZE, "crop": 1.0, "interpolation": "bilinear"}
    return open_category(
        tmp_path / "nut.parquet", name="parts/nut", repository=tmp_path, overrides={},
        folder=folder, colour_map="inferno", **fields,
    )  # fmt: skip


def result(category: Category, tmp_path: Path, name: str = "one", height: float = 1.0) -> Result:
    """Maps that know the corner, read from files like those of the stages."""
    ids = ["test/good/0", "test/good/1", "test/spot/0"]
    maps = np.random.default_rng(0).random((3, SIZE, SIZE)).astype(np.float32) * 0.1
    maps[2, :8, :8] += height
    scores = maps.max(axis=(1, 2)).astype(float)
    write_maps(
        tmp_path / "maps.h5",
        ids,
        {"other": 0 * maps, "mine": maps},
        {"other": 0 * scores, "mine": scores},
        ("mine", "mine"),
    )
    curve = {"fpr": [0.0, 0.0, 1.0], "tpr": [0.0, 1.0, 1.0]}
    records = [
        {"method": "other", "primary": False, "defect_type": "all", "value": 0.5},
        {"method": "mine", "primary": True, "defect_type": "spot", "value": 0.25},
        {"method": "mine", "primary": True, "defect_type": "all", "value": 0.98765, "curve": curve},
    ]
    for record in records:
        record |= {"reason": None, "curve": record.get("curve")}
    write_json(tmp_path / "auroc.json", {"values": records})
    undefined = {**records[2], "value": None, "reason": "no good image", "curve": None}
    write_json(tmp_path / "pl.json", {"values": [undefined]})
    metrics = {"auroc": tmp_path / "auroc.json", "pl": tmp_path / "pl.json"}
    return read_result(name, category, tmp_path / "maps.h5", metrics)


def test_primary_method_over_all_defects_is_read(category: Category, tmp_path: Path) -> None:
    found = result(category, tmp_path)
    assert found.metrics["auroc"] == 0.98765
    assert math.isnan(found.metrics["pl"])
    assert found.reasons == {"pl": "no good image"}
    assert found.maps[2, :8, :8].min() >= 1.0
    assert found.scores.argmax() == 2
    assert list(found.curves) == ["auroc"]


def test_category_knows_its_images_and_the_truth(category: Category) -> None:
    assert category.counts().to_dict("records") == [
        {"split": "train", "defect_type": "good", "images": 2},
        {"split": "test", "defect_type": "good", "images": 2},
        {"split": "test", "defect_type": "spot", "images": 1},
    ]
    truth = category.truth(["test/spot/0", "test/good/0"])
    assert truth.labels.tolist() == [True, False]
    assert truth.masks.sum(axis=(1, 2)).tolist() == [64, 0]
    assert category.images(["test/spot/0"])[0].shape == (SIZE, SIZE, 3)


def test_table_has_a_row_per_result(category: Category, tmp_path: Path) -> None:
    table = compare(result(category, tmp_path), result(category, tmp_path, "two"))
    assert list(table.index) == ["one", "two"]
    assert table.loc["one", "auroc"] == 0.988
    assert math.isnan(table.loc["two", "pl"])


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data)), float)


def test_pictures_show_what_is_new_and_say_it(category: Category, tmp_path: Path) -> None:
    one, flat = result(category, tmp_path), result(category, tmp_path, height=0.0)
    alone, shown = show(category), show(one)
    assert shown.alt == "parts/nut: image, defect, one of good/0, spot/0, good/1"
    assert pixels(shown).shape[0] > pixels(alone).shape[0], "a line more"
    assert show(one).data == shown.data, "the same bytes every time"
    difference = np.abs(pixels(shown) - pixels(show(flat))).max(axis=2)
    assert difference.max() > 50
    changed = np.flatnonzero((difference > 50).any(axis=1))
    assert changed.min() > 0.6 * len(difference), "in the last line only"


def test_notebooks_get_the_picture_with_its_words(category: Category, tmp_path: Path) -> None:
    picture = curves(result(category, tmp_path), metric="auroc")
    data, metadata = picture._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert metadata["image/png"]["alt"] == data["text/plain"] == "auroc: one"
    assert picture.data.startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused(category: Category, tmp_path: Path) -> None:
    one = result(category, tmp_path)
    with pytest.raises(ValueError, match="one: no curve of pl; there are: auroc"):
        curves(one, metric="pl")
    elsewhere = Category(**{**vars(category), "name": "parts/bolt"})
    with pytest.raises(ValueError, match="several categories"):
        show(one, result(elsewhere, tmp_path))
