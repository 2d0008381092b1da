"""Synthetic anomalies: what DRAEM, MemSeg, CutPaste and CDO plant in normal images.

All images are float tensors (3, H, W) with values in [0, 1], all masks bool (H, W); nothing is
changed in place. Random numbers come from torch's global generator (``blocks/perlin.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from skimage.filters import threshold_otsu
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import ColorJitter
from torchvision.transforms.v2 import functional as vision

from algorithms.blocks.perlin import perlin_mask, perlin_noise, random_rotation, uniform
from algorithms.blocks.textures import generated_texture, log_uniform, texture_source

__all__ = [
    "augment", "background", "blend", "cut_paste", "foreground", "generated_texture",
    "noise_patches", "perlin_mask", "perlin_noise", "random_rotation", "scar", "shuffle_tiles",
    "texture_source",
]  # fmt: skip

TRIES = 200  # CDO's, to find a place outside of the background


# --- DRAEM's ten operations, with imgaug's parameters ---------------------------------------------


def _gamma(image: Tensor) -> Tensor:
    return image ** torch.empty(3, 1, 1).uniform_(0.5, 2).to(image)


def _brightness(image: Tensor) -> Tensor:
    factor, shift = uniform(0.8, 1.2), uniform(-30, 30) / 255
    return image + (factor - 1) * vision.rgb_to_grayscale(image) + shift


def _sharpness(image: Tensor) -> Tensor:
    return vision.adjust_sharpness(image, uniform(0, 2))


def _hue_and_saturation(image: Tensor) -> Tensor:
    turned = vision.adjust_hue(image, uniform(-50, 50) / 255)
    value, low = turned.amax(dim=0), turned.amin(dim=0)  # V of HSV; S = 1 - low / value
    saturation = 1 - low / value.clamp(min=1e-6)
    wanted = (saturation + uniform(-50, 50) / 255).clamp(0, 1)
    # Value and hue stay where all channels' distances from the value grow alike. Greys have no
    # hue, and stay grey.
    return value - (value - turned) * (wanted / saturation.clamp(min=1e-3))


def _solarize(image: Tensor) -> Tensor:
    return vision.solarize(image, uniform(32, 128) / 255) if uniform(0, 1) < 0.5 else image


def _posterize(image: Tensor) -> Tensor:
    return vision.posterize(image, int(torch.randint(1, 9, ())))


def _invert(image: Tensor) -> Tensor:
    return 1 - image


def _autocontrast(image: Tensor) -> Tensor:
    """Stretch each channel; 0 to 20 % of its pixels are cut off at either end."""
    levels = (image * 255).round().long().clamp(0, 255).flatten(1)
    cut = levels.shape[1] * int(torch.randint(0, 21, ())) // 100
    channels = 256 * torch.arange(3, device=image.device)[:, None]
    counts = (levels + channels).flatten().bincount(minlength=3 * 256).reshape(3, 256)
    low = (counts.cumsum(dim=1) <= cut).sum(dim=1)[:, None, None] / 255
    high = 1 - (counts.flip(1).cumsum(dim=1) <= cut).sum(dim=1)[:, None, None] / 255
    return torch.where(high > low, (image - low) / (high - low), image)


def _equalize(image: Tensor) -> Tensor:
    return vision.equalize(image)


def _rotate(image: Tensor) -> Tensor:
    return random_rotation(image, 45)


OPERATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    _gamma, _brightness, _sharpness, _hue_and_saturation, _solarize, _posterize, _invert,
    _autocontrast, _equalize, _rotate,
)  # fmt: skip


def augment(image: Tensor, count: int = 3) -> Tensor:
    """Apply ``count`` distinct operations of DRAEM's ten, in random order."""
    for number in torch.randperm(len(OPERATIONS))[:count].tolist():
        image = OPERATIONS[number](image).clamp(0, 1)
    return image


# --- sources and masks ----------------------------------------------------------------------------


def shuffle_tiles(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cut an image into (rows, columns) of tiles and put them together in random order.

    Raises
    ------
    ValueError
        If the tiles do not divide the image.
    """
    (rows, columns), (channels, height, width) = grid, image.shape
    if height % rows or width % columns:
        raise ValueError(f"{rows} x {columns} tiles do not divide an image of {height} x {width}")
    parts = image.reshape(channels, rows, height // rows, columns, width // columns)
    tiles = parts.transpose(2, 3).flatten(1, 2)[:, torch.randperm(rows * columns)]
    return tiles.unflatten(1, grid).transpose(2, 3).reshape(image.shape)


def blend(image: Tensor, source: Tensor, mask: Tensor, opacity: float) -> Tensor:
    """Lay a source over an image: inside of the mask, ``opacity`` is the source's weight."""
    return torch.where(mask.to(image.device), image.lerp(source.to(image), opacity), image)


def foreground(image: Tensor, threshold: float | None, bright: bool) -> Tensor:
    """Tell an object from its background by its grey values: a mask (H, W).

    Parameters
    ----------
    image
        (3, H, W).
    threshold
        In [0, 1]; None: Otsu's, of this image.
    bright
        Whether the object is what is above the threshold, or the rest.
    """
    grey = vision.rgb_to_grayscale(image)[0]
    if threshold is None:
        threshold = float(threshold_otsu(grey.cpu().numpy()))
    return (grey > threshold) == bright


def background(image: Tensor, dark: float = 30 / 255, light: float = 220 / 255) -> Tensor:
    """Find CDO's background (H, W): very dark or light pixels, without specks, and 9 px around."""
    grey = image.mean(dim=0)
    outside = ((grey < dark) | (grey > light)).to(image)[None]
    near = functional.pad(outside, (3, 3, 3, 3), "replicate").unfold(1, 7, 1).sum(dim=-1)
    median = (near.unfold(2, 7, 1).sum(dim=-1) > 24).to(image)  # of 49 pixels
    wide = functional.max_pool2d(median, (1, 19), 1, (0, 9))
    return functional.max_pool2d(wide, (19, 1), 1, (9, 0))[0] > 0


# --- CutPaste -------------------------------------------------------------------------------------


def _corner(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int]:
    """Draw (top, left) of an inner rectangle of (height, width) that fits in an outer one."""
    top, left = (int(torch.randint(o - i + 1, ())) for o, i in zip(outer, inner, strict=True))
    return top, left


def _jittered_patch(image: Tensor, size: tuple[int, int], jitter: float) -> Tensor:
    """Cut a patch of (height, width) at random and change its colours a little."""
    top, left = _corner((image.shape[1], image.shape[2]), size)
    patch = image[:, top : top + size[0], left : left + size[1]]
    return ColorJitter(jitter, jitter, jitter, jitter)(patch)


def _pasted(image: Tensor, patch: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Put a patch (3, h, w) at random, where alpha (h, w) is true; return image and mask."""
    sides = (image.shape[1], image.shape[2])
    height, width = alpha.shape
    top, left = _corner(sides, (height, width))
    place = (..., slice(top, top + height), slice(left, left + width))
    result, mask = image.clone(), torch.zeros(sides, dtype=torch.bool, device=image.device)
    result[place] = torch.where(alpha, patch, image[place])
    mask[place] = alpha
    return result, mask


def cut_paste(
    image: Tensor,
    area: tuple[float, float] = (0.02, 0.15),
    aspect: float = 0.3,
    jitter: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Copy a rectangle to another place (CutPaste's normal variant); return image and mask.

    Parameters
    ----------
    image
        (3, H, W).
    area
        Bounds of the rectangle's share of the image.
    aspect
        Lower bound of width / height, which is log-uniform up to the upper one, its inverse.
    jitter
        Of brightness, contrast, saturation and hue.
    """
    _, height, width = image.shape
    pixels, ratio = uniform(*area) * height * width, log_uniform(aspect, 1 / aspect)
    size = tuple(
        max(1, min(side, round(math.sqrt(wanted))))
        for side, wanted in ((height, pixels / ratio), (width, pixels * ratio))
    )
    patch = _jittered_patch(image, (size[0], size[1]), jitter)
    return _pasted(image, patch, torch.ones(size, dtype=torch.bool, device=image.device))


def scar(
    image: Tensor,
    width: tuple[float, float] = (2, 16),
    height: tuple[float, float] = (10, 25),
    rotation: float = 45.0,
    jitter: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Copy a thin strip, rotated by up to ``rotation`` degrees, to another place (CutPaste's scar).

    Sides are in pixels, meant for images of 256 px. Returns image and mask.
    """
    size = (round(uniform(*height)), round(uniform(*width)))
    strip = _jittered_patch(image, size, jitter)
    strip = torch.cat([strip, torch.ones_like(strip[:1])])
    angle = uniform(-rotation, rotation)
    strip = vision.rotate(strip, angle, InterpolationMode.NEAREST, expand=True)
    return _pasted(image, strip[:3], strip[3] > 0.5)


# --- CDO ------------------------------------------------------------------------------------------


def noise_patches(
    image: Tensor,
    most: int = 4,
    half_sides: tuple[int, int] = (40, 10),
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace 0 to ``most`` rectangles by noise, independent in pixels and channels (CDO).

    Parameters
    ----------
    image
        (3, H, W).
    most
        Rectangles at most; they may overlap.
    half_sides
        (a, b): half a side is drawn from side // a to side // b - 1 pixels.
    skip
        Where no rectangle may have its centre (H, W), bool (:func:`background`); one that finds no
        place in 200 tries is left out.

    Returns
    -------
    tuple
        Image and mask.
    """
    sides = torch.tensor(image.shape[1:])
    low, high = sides // half_sides[0], sides // half_sides[1]
    count = int(torch.randint(most + 1, ()))
    tries = (count, 1 if skip is None else TRIES, 2)
    half = low + (torch.rand(tries) * (high - low)).long()
    centre = half + (torch.rand(tries) * (sides - 2 * half)).long()
    if skip is None:
        free = torch.ones(tries[:2], dtype=torch.bool)
    else:
        free = ~skip.cpu()[centre[..., 0], centre[..., 1]]
    mask = torch.zeros(image.shape[1:], dtype=torch.bool)
    for number in range(count):
        found = free[number].nonzero()
        if len(found):
            where, extent = centre[number, found[0, 0]], half[number, found[0, 0]]
            (top, left), (bottom, right) = (where - extent).tolist(), (where + extent).tolist()
            mask[top:bottom, left:right] = True
    noise = torch.randint(255, image.shape) / 255  # 0 to 254, as the authors'
    mask = mask.to(image.device)
    return torch.where(mask, noise.to(image), image), mask
