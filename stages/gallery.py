"""Make one algorithm's part of a data set's gallery: its maps, scores and overlaps with boxes.

The images are those that stage `pictures` has chosen. A category's maps are one strip of grey
thumbnails, `<category>.webp`, from black to white on one scale (`scale_of`). `gallery.json` has
that scale and, per image, its score, the share of images of the other kind that are scored on the
right side of it (whose mean over defective images is the image AUROC), and the overlaps of
prediction and box at the threshold of Proportion Localised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import visionad_metrics
from stages.artifacts.files import StageError, atomic_path, read_json, write_json
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.artifacts.maps import read_info, read_maps, read_scores
from stages.command import Options, run
from stages.evaluate import read_truth, resize_maps
from stages.pictures import strip


def shares(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tell for each image which share of the other kind's scores (N,) is on the right side.

    That is below for a defective image and above for a good one; equal ones count half. Without
    images of the other kind it is nan.
    """
    sign = np.where(labels, 1, -1)
    found = np.full(len(scores), np.nan)
    for place, score in enumerate(scores):
        others = scores[labels != labels[place]]
        if len(others):
            ahead = sign[place] * (score - others)
            found[place] = (ahead > 0).mean() + (ahead == 0).mean() / 2
    return found


def overlaps(result: Any, images: int) -> list[list[float]]:
    """List the overlaps of each image's boxes at the best threshold of a ``PLResult``."""
    found: list[list[float]] = [[] for _ in range(images)]
    for number, box in enumerate(getattr(result, "boxes", ())):
        found[box.image].append(round(float(result.ious[result.best, number]), 3))
    return found


def scale_of(maps: np.ndarray, labels: np.ndarray) -> list[float]:
    """Find the ends of the scale that maps (K, H, W) are shown on.

    From the median of all pixels, so that what is normal is clear, to the median over the defective
    images, or all if none is, of each one's 99.5th percentile: half of them reach the upper end.
    """
    ends = np.percentile(maps[labels] if labels.any() else maps, 99.5, axis=(1, 2))
    return [float(f"{end:.4g}") for end in (np.median(maps), np.median(ends))]


def read_category(
    maps: Path, index: Path, category: str, ids: Sequence[str], parameters: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the maps (K, H, W) of the images shown, and what is said about them.

    Raises
    ------
    StageError
        If the maps are not those of the index.
    """
    info = read_info(maps)
    table = usable(read_index(index), "test")
    there = set(info.ids)
    if missing := sorted((set(table["image_id"]) ^ there) | (set(ids) - there)):
        raise StageError(f"{maps}: not of the images of {index}: {missing[0]}; run snakemake again")
    table = table.set_index("image_id", drop=False).loc[info.ids]
    size = parameters["evaluation_size"]
    truth = read_truth(Path(parameters["root"]) / category, table, size, parameters["crop"])
    all_maps = resize_maps(read_maps(maps, info.primary_map), size)
    samples = visionad_metrics.Samples(all_maps, truth.masks)
    result = visionad_metrics.compute_on(samples, "pl", parameters["pl"])
    found = overlaps(result, len(table))
    scores = read_scores(maps, info.primary_score)
    right = shares(scores, truth.labels)
    rows = [info.ids.index(image_id) for image_id in ids]
    shown = all_maps[rows]
    return shown, {
        "scale": scale_of(shown, truth.labels[rows]),
        "iou_limit": result.details.get("iou_limit"),
        "images": [
            {
                "id": image_id,
                "score": float(f"{scores[row]:.4g}"),
                "share": None if np.isnan(right[row]) else round(float(right[row]), 4),
                "overlaps": found[row],
            }
            for image_id, row in zip(ids, rows, strict=True)
        ],
    }


def grey(maps: np.ndarray, scale: Sequence[float]) -> list[np.ndarray]:
    """Bring maps (K, H, W) to uint8, from 0 at the scale's lower end to 255 at its upper."""
    low, high = scale
    span = high - low if high > low else 1.0
    return list(np.rint(np.clip((maps - low) / span, 0, 1) * 255).astype(np.uint8))


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the strips and the list of the job's algorithm and data set."""
    parameters = job.parameters
    shown = read_json(job.input("pictures") / "images.json")["categories"]
    categories: dict[str, Any] = {}
    with atomic_path(job.outputs["gallery"]) as folder:
        folder.mkdir()
        sources = zip(
            parameters["categories"], job.inputs["maps"], job.inputs["index"], strict=True
        )
        for category, maps, index in sources:
            ids = [image["id"] for image in shown[category]["images"]]
            arrays, said = read_category(maps, index, category, ids, parameters)
            tiles = grey(arrays, said["scale"])
            strip(
                tiles, parameters["thumbnail"], folder / f"{category}.webp", parameters["quality"]
            )
            categories[category] = said
        write_json(folder / "gallery.json", {**job.key, "categories": categories})
    return {"maps": sum(len(one["images"]) for one in categories.values())}


if __name__ == "__main__":
    run("gallery", __doc__, body)
