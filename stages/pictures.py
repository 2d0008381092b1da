"""Make a data set's gallery of test images: which are shown, their thumbnails, masks and boxes.

Which images are shown is decided by the index alone, so that all algorithms show the same: a sixth
of them good, the others defective, defect types in turn, by name. A category's thumbnails are one
strip, `<category>.webp`; `images.json` says what stands in it, with outlines of masks and the boxes
of Proportion Localised as lines in thousandths of the image's sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

import visionad_metrics
from stages.artifacts.files import atomic_path, write_json
from stages.artifacts.images import load_image, united_mask
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.command import Options, run
from stages.shown import in_turn

GOOD_SHARE = 6  # one of so many is a good one
UNITS = 1000  # of the lines' coordinates
TOLERANCE = 0.6  # pixels by which an outline may be off


def choose(table: pd.DataFrame, count: int) -> list[str]:
    """Choose ids of test images: defect types in turn, then good ones."""
    good, defective = in_turn(table)
    few = min(len(good), max(-(-count // GOOD_SHARE), count - len(defective)))
    return [*defective[: count - few], *good[:few]]


def strip(tiles: Sequence[np.ndarray], side: int, path: Path, quality: int) -> None:
    """Write tiles (H, W[, 3]) uint8 side by side, each ``side`` pixels, as one WebP."""
    size = (side, side)
    resized = [
        np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.BILINEAR)) for tile in tiles
    ]
    image = Image.fromarray(np.concatenate(resized, axis=1))
    image.save(path, "WEBP", quality=quality, method=4)


def _path(points: np.ndarray, shape: tuple[int, ...]) -> str:
    """Write a closed line (N, 2), in x and y with whole numbers at pixel centres, as SVG does."""
    scaled = np.rint((points + 0.5) * UNITS / np.array(shape[::-1])).astype(int)
    return "M" + "L".join(f"{x} {y}" for x, y in scaled.tolist()) + "Z"


def outline(mask: np.ndarray) -> str:
    """Outline a mask (H, W) bool as the path of an SVG; empty if the mask is."""
    lines = find_contours(np.pad(mask, 1).astype(float), 0.5)
    return "".join(
        _path(approximate_polygon(line, TOLERANCE)[:, ::-1] - 1, mask.shape) for line in lines
    )


def boxes_of(masks: np.ndarray, parameters: Mapping[str, Any]) -> list[list[str]]:
    """Find the boxes that Proportion Localised asks for, per image of ``masks`` (N, H, W) bool."""
    samples = visionad_metrics.Samples(np.zeros(masks.shape, np.float32), masks)
    result = visionad_metrics.compute_on(samples, "pl", parameters)
    paths: list[list[str]] = [[] for _ in masks]
    for box in getattr(result, "boxes", ()):
        paths[box.image].append(_path(box.corners, masks.shape[1:]))
    return paths


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the strips and the list of the job's data set."""
    parameters = job.parameters
    side, size, crop = (parameters[key] for key in ("thumbnail", "evaluation_size", "crop"))
    categories: dict[str, Any] = {}
    with atomic_path(job.outputs["pictures"]) as folder:
        folder.mkdir()
        for category, index in zip(parameters["categories"], job.inputs["index"], strict=True):
            table = usable(read_index(index), "test").set_index("image_id", drop=False)
            chosen = table.loc[choose(table, parameters["images_per_category"])]
            place = Path(parameters["root"]) / category
            masks = np.stack([united_mask(place, names, size, crop) for names in chosen["masks"]])
            images = [
                load_image(place / path, side, crop, parameters["interpolation"])
                for path in chosen["path"]
            ]
            strip(images, side, folder / f"{category}.webp", parameters["quality"])
            boxes = boxes_of(masks, parameters["pl"])
            rows = zip(chosen.to_dict("records"), masks, boxes, strict=True)
            categories[category] = {
                "test_images": len(table),
                "images": [
                    {
                        "id": row["image_id"],
                        "defect_type": row["defect_type"],
                        "label": int(row["label"]),
                        "outline": outline(mask),
                        "boxes": found,
                    }
                    for row, mask, found in rows
                ],
            }
        write_json(
            folder / "images.json", {"dataset": job.key["dataset"], "categories": categories}
        )
    return {"images": sum(len(one["images"]) for one in categories.values())}


if __name__ == "__main__":
    run("pictures", __doc__, body)
