"""Renderer of the synthetic `demo` data set, in the folder layout of MVTec AD.

Three categories stand for three kinds of inspection: `weave` (a texture), `flange` (an object in
any rotation) and `kit` (logical rules of what lies where). Nothing here is a photograph.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from stages.demo_images import kit, machined, texture
from stages.demo_images.scene import BoolArray, ByteArray

__all__ = ["CATEGORIES", "Category", "contact_sheet", "write_category"]

Render = Callable[[np.random.Generator, str | None, int], tuple[ByteArray, BoolArray]]


@dataclass(frozen=True)
class Category:
    """One category: its name, its defect types, and the function that renders a picture.

    `render(rng, defect, size)` returns an image (size, size, 3) uint8 and a mask (size, size) bool,
    all False where `defect` is None. With the same generator state, a good picture is the clean
    twin of a defective one.
    """

    name: str
    defects: tuple[str, ...]
    render: Render


CATEGORIES: dict[str, Category] = {
    name: Category(name, module.DEFECTS, module.render)
    for name, module in (("weave", texture), ("flange", machined), ("kit", kit))
}


def _generator(seed: int, category: str, group: str, index: int) -> np.random.Generator:
    """Generator of one image: a function of its place in the data set alone."""
    keys = (zlib.crc32(text.encode()) for text in (category, group))
    return np.random.default_rng([seed, *keys, index])


def write_category(
    folder: Path,
    category: str,
    seed: int,
    size: int,
    train_good: int,
    test_good: int,
    per_defect: int,
) -> int:
    """Render a category into its `folder`, as MVTec AD lays it out.

    Images are RGB PNG of `size` x `size`; masks are single-channel PNG of 0 and 255. The same
    arguments give the same bytes, and no image depends on the counts. Returns the number of images.
    """
    what = CATEGORIES[category]
    groups: list[tuple[str, str | None, int]] = [
        ("train/good", None, train_good),
        ("test/good", None, test_good),
        *((f"test/{defect}", defect, per_defect) for defect in what.defects),
    ]
    for group, defect, count in groups:
        (folder / group).mkdir(parents=True, exist_ok=True)
        if defect is not None:
            (folder / "ground_truth" / defect).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = what.render(_generator(seed, category, group, index), defect, size)
            Image.fromarray(image).save(folder / group / f"{index:03d}.png")
            if defect is not None:
                path = folder / "ground_truth" / defect / f"{index:03d}_mask.png"
                Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(path)
    return sum(count for _, _, count in groups)


def _outlined(image_path: Path, mask_path: Path) -> Image.Image:
    """Picture with its mask's outline in red."""
    image = np.array(Image.open(image_path).convert("RGB"))
    mask = np.asarray(Image.open(mask_path)) > 0
    image[binary_dilation(mask, iterations=2) & ~mask] = (230, 30, 30)
    return Image.fromarray(image)


def _tiles(root: Path, columns: int) -> list[tuple[str, Image.Image]]:
    """Labelled pictures of one row: two of each defect where they fit, the rest good."""
    defects = sorted(path.name for path in (root / "ground_truth").iterdir())
    each = 2 if columns >= 2 * len(defects) + 1 else 1
    goods = sorted((root / "train" / "good").glob("*.png"))[: max(columns - each * len(defects), 0)]
    tiles = [("good", Image.open(path).convert("RGB")) for path in goods]
    for defect in defects:
        for path in sorted((root / "test" / defect).glob("*.png"))[:each]:
            mask = root / "ground_truth" / defect / f"{path.stem}_mask.png"
            tiles.append((defect.replace("_", " "), _outlined(path, mask)))
    return tiles[:columns]


def contact_sheet(
    folder: Path, categories: Sequence[str], columns: int = 8, tile: int = 160
) -> Image.Image:
    """Overview of a rendered data set: one row a category, good pictures first, then defects.

    `folder` holds the categories as `write_category` left them; masks are outlined in red.
    Pictures are shown `tile` pixels wide.
    """
    rows = [_tiles(folder / category, columns) for category in categories]
    side, gap, label = tile, 8, 20
    sheet = Image.new(
        "RGB", (gap + columns * (side + gap), gap + len(rows) * (side + label + gap)), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, (category, tiles) in enumerate(zip(categories, rows, strict=True)):
        top = gap + row * (side + label + gap)
        for column, (name, picture) in enumerate(tiles):
            left = gap + column * (side + gap)
            draw.text((left, top), f"{category}: {name}", fill=(60, 60, 60), font=font)
            small = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, top + label))
    return sheet
