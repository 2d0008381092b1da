"""Images and masks brought to the arrays that the protocol asks for (``docs/protocol.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from stages.artifacts.files import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from stages.artifacts.files import StageError

# Modes that convert to 8-bit RGB without losing range: others (16-bit, CMYK, ...) are refused.
COLOUR_MODES = ("L", "LA", "P", "RGB", "RGBA", "1")
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

ImageFile.LOAD_TRUNCATED_IMAGES = False


def open_image(path: Path) -> Image.Image:
    """Decode an image completely.

    Raises
    ------
    StageError
        If the file is missing, is no image, or is cut short.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise StageError(f"{path}: no such file") from None
    except (
        OSError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        SyntaxError,
        ValueError,
    ) as error:
        raise StageError(f"{path}: cannot be decoded ({error}); replace the file") from None


def crop_box(size: tuple[int, int], crop: float) -> tuple[float, float, float, float]:
    """Box (left, top, right, bottom), in pixels, of the centre ``crop`` fraction of each side."""
    width, height = size
    left, top = width * (1 - crop) / 2, height * (1 - crop) / 2
    return left, top, width - left, height - top


def load_image(path: Path, size: int, crop: float, interpolation: str) -> np.ndarray:
    """Read an image as RGB (size, size, 3) uint8.

    Cropping and antialiased resizing of both sides to ``size`` are one resampling. Grey images get
    three equal channels; an alpha channel is dropped.
    """
    image = open_image(path).convert("RGB")
    box = crop_box(image.size, crop)
    resized = image.resize((size, size), RESAMPLING[interpolation], box=box)
    return np.asarray(resized)


def load_mask(path: Path) -> np.ndarray:
    """Read a mask (H, W) bool at its own size: every value above 0 is anomalous."""
    return load_mask_values(path) > 0


def load_mask_values(path: Path) -> np.ndarray:
    """Read a mask's values (H, W) at its own size; of several channels the largest."""
    image = open_image(path)
    if image.mode in ("LA", "RGBA", "P"):  # alpha marks nothing, and a palette may number white 0
        image = image.convert("L" if image.mode == "LA" else "RGB")
    mask = np.asarray(image)
    return mask if mask.ndim == 2 else mask.max(axis=2)


def evaluation_mask(mask: np.ndarray, size: int, crop: float) -> np.ndarray:
    """Bring a mask (H, W) bool to (size, size) bool by nearest neighbour, cropped as images are."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    box = crop_box(image.size, crop)
    return np.asarray(image.resize((size, size), Image.Resampling.NEAREST, box=box)) > 0


def united_mask(category: Path, names: Sequence[str], size: int, crop: float) -> np.ndarray:
    """Read an image's masks, paths below its category's folder, as one (size, size) bool.

    No name: a good image, whose mask is empty.
    """
    united = np.zeros((size, size), bool)
    for name in names:
        united |= evaluation_mask(load_mask(category / name), size, crop)
    return united
