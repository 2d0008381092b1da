"""What augmentation does to one image: drawn by numbers alone, then applied by torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional


@dataclass(frozen=True)
class Draw:
    """What is done to one copy of an image."""

    horizontal_flip: bool
    vertical_flip: bool
    degrees: float  # counter-clockwise
    brightness: float  # factor
    contrast: float  # factor


def draw(settings: Mapping[str, Any], seed: int, row: int) -> Draw:
    """Draw what is done to a copy: a function of its number and the seed, of nothing else.

    Every setting takes its numbers from the generator, used or not: switching one on leaves what
    the others draw as it is.
    """
    flips, signs = np.random.default_rng([seed, row]).random((2, 3))
    angle, brightness, contrast = 2 * signs - 1
    return Draw(
        horizontal_flip=bool(settings["horizontal_flip"] and flips[0] < 0.5),
        vertical_flip=bool(settings["vertical_flip"] and flips[1] < 0.5),
        degrees=float(angle * settings["rotation_degrees"]),
        brightness=float(1 + brightness * settings["brightness"]),
        contrast=float(1 + contrast * settings["contrast"]),
    )


def rotated(image: Tensor, degrees: float) -> Tensor:
    """Rotate (3, H, W) about its centre, bilinearly; corners show the mirrored image, not black."""
    sides = [image.shape[-1], image.shape[-2]]
    radians = np.deg2rad(degrees)
    needed = abs(np.cos(radians)) + abs(np.sin(radians))  # sides of the box around it
    margin = int(np.ceil((needed - 1) / 2 * max(sides))) + 1
    padded = functional.pad(
        image, [min(margin, side - 1) for side in sides], padding_mode="reflect"
    )
    turned = functional.rotate(padded, degrees, interpolation=InterpolationMode.BILINEAR)
    return functional.center_crop(turned, sides[::-1])


def augment(pixels: np.ndarray, drawn: Draw) -> np.ndarray:
    """Change an image (H, W, 3) uint8 as was drawn; shape and type stay."""
    # As floats, rounded once: of bytes torchvision cuts off the fractions after each step.
    image = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
    if drawn.horizontal_flip:
        image = functional.horizontal_flip(image)
    if drawn.vertical_flip:
        image = functional.vertical_flip(image)
    if drawn.degrees:
        image = rotated(image, drawn.degrees)
    if drawn.brightness != 1:
        image = functional.adjust_brightness(image, drawn.brightness)
    if drawn.contrast != 1:
        image = functional.adjust_contrast(image, drawn.contrast)
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
