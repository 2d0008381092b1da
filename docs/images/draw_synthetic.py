"""Draw docs/images/synthetic.png: synthetic anomalies on the demo's images.

python docs/images/draw_synthetic.py        # after `make leaderboard`, which draws those images
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from algorithms.blocks.perlin import perlin_mask  # noqa: E402
from algorithms.blocks.synthetic import (  # noqa: E402
    augment,
    blend,
    cut_paste,
    noise_patches,
    scar,
    shuffle_tiles,
)
from algorithms.blocks.textures import generated_texture  # noqa: E402
from stages.artifacts.images import load_image  # noqa: E402
from stages.drawing import STYLE, save  # noqa: E402

SIZE = (256, 256)


def mask_of_some() -> Tensor:
    """A Perlin mask that is not empty."""
    while not (mask := perlin_mask(SIZE)).any():
        pass
    return mask


def kinds(image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Image and mask of each kind of anomaly."""
    textured, structured = mask_of_some(), mask_of_some()
    texture = augment(generated_texture(SIZE))
    tiles = shuffle_tiles(augment(image), (8, 8))
    return {
        "Perlin mask,\ntexture (DRAEM)": (blend(image, texture, textured, 0.8), textured),
        "Perlin mask,\ntiles (MemSeg)": (blend(image, tiles, structured, 0.8), structured),
        "patch\n(CutPaste)": cut_paste(image),
        "scar\n(CutPaste)": scar(image),
        "noise\n(CDO)": noise_patches(image),
    }


def main() -> None:
    """Draw an image and its anomalies for each category, masks outlined."""
    torch.manual_seed(3)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5.4), layout="constrained")
        axes = figure.subplots(3, 6)
        for number, category in enumerate(("weave", "flange", "kit")):
            path = ROOT / "data" / "demo" / category / "train" / "good" / "000.png"
            pixels = load_image(path, SIZE[0], 1.0, "bilinear").astype(np.float32) / 255
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            whole = {"normal": (image, torch.zeros(SIZE, dtype=torch.bool)), **kinds(image)}
            for place, (title, (shown, mask)) in zip(axes[number], whole.items(), strict=True):
                place.imshow(shown.permute(1, 2, 0).clamp(0, 1).numpy())
                if mask.any():
                    place.contour(mask.numpy(), levels=[0.5], colors="#D55E00", linewidths=1)
                place.set_axis_off()
                if number == 0:
                    place.set_title(title, fontsize=9)
        save(figure, ROOT / "docs" / "images", "synthetic", ["png"], 110)


if __name__ == "__main__":
    main()
