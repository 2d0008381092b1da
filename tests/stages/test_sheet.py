"""The sheet of anomaly maps: which images it shows, and where their pixels come from."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import sheet
from stages.artifacts.files import StageError
from stages.artifacts.index import COLUMNS, write_index
from stages.artifacts.job import Job
from stages.artifacts.maps import write_maps
from stages.command import Options

SIZE = 32
IDS = ["good/000", "good/001", "bent/000", "bent/001", "bent/002", "crack/000"]
GREY = 100


def index_table(ids: list[str]) -> pd.DataFrame:
    rows = [
        {
            "image_id": f"test/{name}",
            "path": f"test/{name}.png",
            "split": "test",
            "defect_type": name.split("/")[0],
            "label": int(not name.startswith("good")),
            "masks": [] if name.startswith("good") else [f"{name}_a.png", f"{name}_b.png"],
            "mask_sha256": [] if name.startswith("good") else ["", ""],
            "saturation": [],
            "width": SIZE,
            "height": SIZE,
            "mode": "L",
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "problem": "",
            "remedy": "",
        }
        for name in ids
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.fixture
def category(tmp_path: Path) -> Path:
    """Images of one grey, each with two masks of one row; maps that are 0 but for one corner."""
    for name in IDS:
        for place in (f"test/{name}.png", f"{name}_a.png", f"{name}_b.png"):
            path = tmp_path / "root" / "screw" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((SIZE, SIZE), GREY if place.startswith("test") else 0, np.uint8)
            pixels[{"_a": slice(4, 5), "_b": slice(9, 10)}.get(path.stem[-2:], slice(0))] = 255
            Image.fromarray(pixels).save(path)
    write_index(tmp_path / "index.parquet", index_table(IDS))
    save_maps(tmp_path, np.arange(len(IDS), dtype=float))
    return tmp_path


def save_maps(folder: Path, scores: np.ndarray) -> None:
    """Write maps of all images, in an order of their own."""
    ids = [f"test/{name}" for name in IDS][::-1]
    maps = np.zeros((len(IDS), 16, 16), np.float32)
    maps[:, :4, :4] = np.arange(1, len(IDS) + 1)[::-1, np.newaxis, np.newaxis]
    both = {"main": maps, "other": -maps}
    write_maps(
        folder / "maps.h5", ids, both, {"main": scores[::-1], "other": -scores}, ("main", "main")
    )


def parameters(folder: Path, rows: int = 3, formats: tuple[str, ...] = ("png",)) -> dict[str, Any]:
    return {
        "root": str(folder / "root"),
        "categories": ["screw"],
        "image_size": SIZE,
        "crop": 1.0,
        "interpolation": "bilinear",
        "evaluation_size": SIZE,
        "figures": {
            "formats": list(formats),
            "dpi": 100,
            "colour_map": "gray",
            "sheet_rows": rows,
        },
    }


def read_block(folder: Path, rows: int = 3) -> sheet.Block:
    return sheet.read_block(
        "screw", folder / "maps.h5", folder / "index.parquet", parameters(folder, rows)
    )


def shown(block: sheet.Block) -> list[str]:
    return [label.split()[0] for label in block.labels]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["good/000"]),
        (3, ["good/000", "bent/000", "crack/000"]),
        (4, ["good/000", "bent/000", "crack/000", "bent/001"]),
        (9, ["good/000", "bent/000", "crack/000", "bent/001", "bent/002", "good/001"]),
    ],
)
def test_chooses_a_good_one_then_defect_types_in_turn(count: int, expected: list[str]) -> None:
    for ids in (IDS, IDS[::-1]):
        assert sheet.choose(index_table(ids), count) == [f"test/{name}" for name in expected]


def test_a_category_without_defects_or_without_good_images_still_has_rows() -> None:
    assert sheet.choose(index_table(IDS[:2]), 5) == ["test/good/000", "test/good/001"]
    assert sheet.choose(index_table(IDS[2:]), 2) == ["test/bent/000", "test/crack/000"]


def test_scores_do_not_decide_what_is_shown(category: Path) -> None:
    before = read_block(category)
    save_maps(category, -np.arange(len(IDS), dtype=float))
    after = read_block(category)
    assert shown(before) == shown(after) == ["good/000", "bent/000", "crack/000"]
    assert before.labels[2].endswith("score 5") and after.labels[2].endswith("score -5")


def test_rows_are_joined_by_id_and_masks_united(category: Path) -> None:
    block = read_block(category)
    assert block.maps[:, 0, 0].tolist() == [1, 3, 6]  # of good/000, bent/000 and crack/000
    assert [np.flatnonzero(mask.any(axis=1)).tolist() for mask in block.masks] == [
        [],
        [4, 9],
        [4, 9],
    ]


def test_an_image_without_a_map_is_named(category: Path) -> None:
    write_index(category / "index.parquet", index_table([*IDS, "crack/0000"]))
    with pytest.raises(StageError, match="no map of test/crack/0000"):
        read_block(category, rows=9)


def test_tiles_share_one_colour_scale(category: Path) -> None:
    block = read_block(category)
    assert block.scale == (0.0, 6.0)
    tiles = block.tiles(SIZE, "gray")
    assert tiles.shape == (3, 4, SIZE, SIZE, 3)
    picture, truth, colours, overlay = (tiles[:, column] for column in range(4))
    assert (picture == GREY).all()
    assert (truth[0] == GREY).all()
    assert (truth[1, [4, 9]] == sheet.OUTLINE).all() and (truth[1, 5:9] == GREY).all()
    assert colours[:, 0, 0, 0] == pytest.approx([255 / 6, 255 / 2, 255], abs=2)
    assert (colours[:, -1, -1] == 0).all()
    # Transparent where the map is low, the map's colour where it is high.
    assert (overlay[:, -1, -1] == GREY).all()
    assert overlay[2, 0, 0, 0] == pytest.approx(0.25 * GREY + 0.75 * 255, abs=1)


def test_a_constant_map_is_drawn() -> None:
    images = [np.zeros((SIZE, SIZE, 3), np.uint8)]
    masks = [np.zeros((SIZE, SIZE), bool)]
    block = sheet.Block("c", images, masks, np.full((1, 8, 8), 2, np.float32), ["label"])
    with np.errstate(all="raise"):
        assert (block.tiles(8, "gray")[0, 2] == 0).all()


def test_outline_stays_inside_the_mask() -> None:
    mask = np.zeros((12, 12), bool)
    mask[2:10, 2:10] = True
    border = sheet.outline(mask)
    assert not (border & ~mask).any()
    assert border[2:4, 2:10].all() and not border[4:8, 4:8].any()


@pytest.mark.parametrize(("blocks", "across"), [(1, 1), (2, 2), (3, 3), (4, 2), (15, 3)])
def test_layout_fits_the_width(blocks: int, across: int) -> None:
    layout = sheet.Layout.of(blocks)
    assert layout.across == across
    width = sheet.MARGIN + across * (layout.block_width + sheet.MARGIN)
    assert width <= sheet.WIDTH
    assert width > sheet.WIDTH - 20 or layout.side == sheet.LARGEST_TILE


@pytest.mark.parametrize(
    ("formats", "name"), [(("svg", "png"), "sheet.png"), (("svg",), "sheet.svg")]
)
def test_body_writes_one_sheet_pixel_by_pixel(
    category: Path, formats: tuple[str, ...], name: str
) -> None:
    job = Job(
        "sheet",
        {"algorithm": "padim", "dataset": "toy"},
        parameters(category, formats=formats),
        {"maps": [category / "maps.h5"], "index": [category / "index.parquet"]},
        {"sheet": category / "out"},
        "",
        {},
        "",
        "cpu",
    )
    assert sheet.body(job, Options(1, "cpu", False)) == {"images": 3}
    path, words = sorted((category / "out").iterdir())
    assert "ground truth" in words.read_text() and "screw: good/000" in words.read_text()
    assert path.name == name
    first = path.read_bytes()
    sheet.body(job, Options(1, "cpu", False))
    assert path.read_bytes() == first
    if name.endswith("png"):
        layout = sheet.Layout.of(1)
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] == sheet.MARGIN * 2 + layout.block_width
        top = 2 * sheet.HEADER + sheet.LABEL
        tile = pixels[top : top + layout.side, sheet.MARGIN : sheet.MARGIN + layout.side]
        assert (tile == GREY).all()
        assert (pixels[top - 1, sheet.MARGIN] == 255).all()
