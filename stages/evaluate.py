"""Compute the metrics of one (algorithm, category, seed): only those that are stale.

One file per metric. Each holds a value per method and, if asked for, per defect type, where one
type is set against all good images. A value that is undefined is null and has a reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

import visionad_metrics
from stages.artifacts.files import StageError, read_json, remove, write_json
from stages.artifacts.images import united_mask
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.artifacts.maps import MapsInfo, read_info, read_maps, read_scores
from stages.command import Options, run

ALL = "all"


@dataclass(frozen=True)
class Truth:
    """What the test images really show, in the order of the maps."""

    labels: np.ndarray  # (N,) bool
    defect_types: np.ndarray  # (N,) str
    masks: np.ndarray  # (N, size, size) bool

    def groups(self, by_defect_type: bool) -> dict[str, np.ndarray]:
        """Row selections (N,) bool: all images, and each defect type with the good ones."""
        groups = {ALL: np.ones(len(self.labels), bool)}
        if by_defect_type:
            for name in sorted(set(self.defect_types[self.labels])):
                groups[name] = ~self.labels | (self.defect_types == name)
        return groups


def read_truth(category: Path, table: pd.DataFrame, size: int, crop: float) -> Truth:
    """Read labels and masks; several masks of one image are united."""
    masks = np.zeros((len(table), size, size), bool)
    for row, names in enumerate(table["masks"]):
        masks[row] = united_mask(category, names, size, crop)
    labels = table["label"].to_numpy().astype(bool)
    return Truth(labels, table["defect_type"].to_numpy().astype(str), masks)


def resize_maps(maps: np.ndarray, size: int) -> np.ndarray:
    """Bring maps (N, H, W) float32 to (N, size, size), bilinear and antialiased."""
    if maps.shape[1:] == (size, size):
        return maps
    return np.stack(
        [
            np.asarray(Image.fromarray(one, "F").resize((size, size), Image.Resampling.BILINEAR))
            for one in maps
        ]
    )


def evaluate_metric(
    metric: str,
    parameters: dict[str, Any],
    maps_path: Path,
    info: MapsInfo,
    truth: Truth,
    by_defect_type: bool,
) -> list[dict[str, Any]]:
    """Compute one metric for every method and group: one record each."""
    records: list[dict[str, Any]] = []
    pixels = visionad_metrics.level(metric) == "pixel"
    primary = info.primary_map if pixels else info.primary_score
    for method in info.map_methods if pixels else info.score_methods:
        if pixels:
            maps = resize_maps(read_maps(maps_path, method), truth.masks.shape[-1])
        else:
            scores = read_scores(maps_path, method)
        for group, rows in truth.groups(by_defect_type).items():
            labels = truth.labels[rows]
            result = visionad_metrics.compute(
                metric,
                maps[rows] if pixels else None,
                truth.masks[rows] if pixels else None,
                None if pixels else scores[rows],
                labels,
                **parameters,
            )
            records.append(
                {
                    "method": method,
                    "primary": method == primary,
                    "defect_type": group,
                    "value": None if math.isnan(result.value) else result.value,
                    "reason": result.reason,
                    "good_images": int((~labels).sum()),
                    "defective_images": int(labels.sum()),
                }
            )
    return records


def is_current(path: Path, fingerprint: str) -> bool:
    """Tell whether a metric's file was made with this fingerprint."""
    try:
        return path.is_file() and read_json(path).get("fingerprint") == fingerprint
    except StageError:
        return False


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the stale metrics of the job, and remove those that are no longer asked for."""
    parameters = job.parameters
    stale = {
        metric: path
        for metric, path in job.outputs.items()
        if metric != "provenance" and not is_current(path, job.parts[metric])
    }
    folder = job.outputs["provenance"].parent
    for path in folder.glob("*.json"):
        if path not in job.outputs.values():
            remove(path)
    if stale:
        maps_path = job.input("maps")
        info = read_info(maps_path)
        table = usable(read_index(job.input("index")), "test").set_index("image_id", drop=False)
        missing = set(info.ids) ^ set(table.index)
        if missing:
            raise StageError(
                f"{maps_path}: its images are not those of the index, "
                f"e.g. {sorted(missing)[0]}; run snakemake again"
            )
        category = Path(parameters["root"]) / job.key["category"]
        truth = read_truth(
            category, table.loc[info.ids], parameters["evaluation_size"], parameters["crop"]
        )
    for metric, path in stale.items():
        records = evaluate_metric(
            metric,
            parameters["metrics"][metric],
            maps_path,
            info,
            truth,
            parameters["by_defect_type"],
        )
        write_json(
            path,
            {
                **job.key,
                "metric": metric,
                "parameters": parameters["metrics"][metric],
                "evaluation_size": parameters["evaluation_size"],
                "fingerprint": job.parts[metric],
                "values": records,
            },
        )
    return {"computed": sorted(stale)}


if __name__ == "__main__":
    run("evaluate", __doc__, body)
