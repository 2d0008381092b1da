"""Compute the metrics of one (algorithm, category, seed): only those that are stale.

One file per metric. Each holds a value per method and, if asked for, per defect type, where one
type is set against all good images, and the mean of those types that a data set averages over. A
value that is undefined is null and has a reason. The metrics of one method and group of images
share one sort.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

import visionad_metrics
from stages.artifacts.files import StageError, read_json, remove, write_json
from stages.artifacts.images import evaluation_mask, load_mask
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.artifacts.maps import MapsInfo, read_info, read_maps, read_scores
from stages.command import Options, run
from visionad_metrics.saturation import Channel, Saturation

ALL, MEAN = "all", "mean_of_types"
CURVE_POINTS = 250


@dataclass(frozen=True)
class Truth:
    """What the test images really show, in the order of the maps."""

    labels: np.ndarray  # (N,) bool
    defect_types: np.ndarray  # (N,) str
    masks: np.ndarray  # (N, size, size) bool
    channels: list[Channel] | None = None  # of all defects, if each says how much is all of it

    def groups(self, by_defect_type: bool, averaged: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Row selections (N,) bool: all images, and each defect type with the good ones.

        Of the types, only those that are averaged unless all are asked for.
        """
        groups = {ALL: np.ones(len(self.labels), bool)}
        for name in sorted(set(self.defect_types[self.labels])):
            if by_defect_type or name in averaged:
                groups[name] = ~self.labels | (self.defect_types == name)
        return groups

    def channels_of(self, rows: np.ndarray) -> list[Channel] | None:
        """Select the channels of some images, which are numbered anew."""
        if self.channels is None:
            return None
        places = np.cumsum(rows) - 1
        return [
            replace(one, image=int(places[one.image])) for one in self.channels if rows[one.image]
        ]


def read_truth(category: Path, table: pd.DataFrame, size: int, crop: float) -> Truth:
    """Read labels and masks; several masks of one image are united.

    Saturation areas in pixels are those of the image as it is, and shrink as the masks do. A defect
    that the masks at this size do not show is none.
    """
    masks = np.zeros((len(table), size, size), bool)
    channels: list[Channel] = []
    stated = True
    for row, image in enumerate(table.to_dict("records")):
        scale = size**2 / (image["width"] * image["height"] * crop**2)
        stated = stated and len(image["saturation"]) == len(image["masks"])
        for number, name in enumerate(image["masks"]):
            defect = evaluation_mask(load_mask(category / name), size, crop)
            masks[row] |= defect
            places = np.flatnonzero(defect)
            if stated and places.size:
                one = image["saturation"][number]
                whole = Saturation(one["threshold"], one["relative"], one["defect"])
                channels.append(Channel(row, places, whole.area(places.size, scale)))
    labels = table["label"].to_numpy().astype(bool)
    types = table["defect_type"].to_numpy().astype(str)
    return Truth(labels, types, masks, channels if stated else None)


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


def stored_curve(result: visionad_metrics.MetricResult) -> dict[str, list[float]] | None:
    """Thin a curve to what a figure can show: at most ``CURVE_POINTS`` points of six digits."""
    if result.curve is None:
        return None
    length = len(next(iter(result.curve.values())))
    kept = np.unique(np.linspace(0, length - 1, min(length, CURVE_POINTS)).astype(int))
    return {
        name: [float(f"{point:.6g}") for point in np.asarray(points)[kept]]
        for name, points in result.curve.items()
    }


def record(
    result: visionad_metrics.MetricResult,
    method: str,
    primary: bool,
    group: str,
    labels: np.ndarray,
) -> dict[str, Any]:
    """Lay out one value as the metric's file holds it; curves of all images together only."""
    return {
        "method": method,
        "primary": primary,
        "defect_type": group,
        "value": None if math.isnan(result.value) else result.value,
        "reason": result.reason,
        "good_images": int((~labels).sum()),
        "defective_images": int(labels.sum()),
        "details": result.details,
        "curve": stored_curve(result) if group == ALL else None,
    }


def mean_of_types(records: Sequence[Mapping[str, Any]], types: Sequence[str]) -> dict[str, Any]:
    """Average one method's values of some defect types, each set against all good images."""
    found = {record["defect_type"]: record for record in records}
    reasons = [
        f"{name}: {found[name]['reason'] if name in found else 'no such image'}"
        for name in types
        if name not in found or found[name]["value"] is None
    ]
    averaged = [found[name] for name in types if name in found]
    values = [record["value"] for record in averaged]
    return {
        **records[0],
        "defect_type": MEAN,
        "value": None if reasons else sum(values) / len(values),
        "reason": "; ".join(reasons) or None,
        "defective_images": sum(record["defective_images"] for record in averaged),
        "details": {"types": list(types)},
        "curve": None,
    }


def evaluate(
    metrics: Mapping[str, Mapping[str, Any]],
    maps_path: Path,
    info: MapsInfo,
    truth: Truth,
    by_defect_type: bool,
    averaged: Sequence[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Compute metrics for every method and group; those of one group share one sort.

    Parameters
    ----------
    metrics
        For each name of a metric the function ``metric`` and its ``parameters``.
    maps_path, info
        The predictions.
    truth
        Labels and masks of the same images.
    by_defect_type
        Whether each defect type is set against the good images, too.
    averaged
        Defect types whose mean is a value, too.
    """
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in metrics}
    groups = truth.groups(by_defect_type, averaged)
    for level in ("image", "pixel"):
        asked = {n: m for n, m in metrics.items() if visionad_metrics.level(m["metric"]) == level}
        primary = info.primary_map if level == "pixel" else info.primary_score
        methods = info.map_methods if level == "pixel" else info.score_methods
        for method in methods if asked else ():
            if level == "pixel":
                maps = resize_maps(read_maps(maps_path, method), truth.masks.shape[-1])
            else:
                scores = read_scores(maps_path, method)
            for group, rows in groups.items():
                labels = truth.labels[rows]
                if level == "pixel":
                    samples = visionad_metrics.Samples(
                        maps[rows], truth.masks[rows], channels=truth.channels_of(rows)
                    )
                else:
                    samples = visionad_metrics.Samples(scores=scores[rows], labels=labels)
                for name, metric in asked.items():
                    result = visionad_metrics.compute_on(
                        samples, metric["metric"], metric["parameters"]
                    )
                    records[name].append(record(result, method, method == primary, group, labels))
            if averaged:
                for name in asked:
                    of_method = records[name][-len(groups) :]
                    records[name].append(mean_of_types(of_method, averaged))
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
        if metric != "provenance" and (job.forced or not is_current(path, job.parts[metric]))
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
        metrics = {name: parameters["metrics"][name] for name in stale}
        found = evaluate(
            metrics,
            maps_path,
            info,
            truth,
            parameters["by_defect_type"],
            parameters.get("mean_of_types", ()),
        )
    for name, path in stale.items():
        write_json(
            path,
            {
                **job.key,
                "metric": name,
                "function": parameters["metrics"][name]["metric"],
                "parameters": parameters["metrics"][name]["parameters"],
                "evaluation_size": parameters["evaluation_size"],
                "fingerprint": job.parts[name],
                "values": found[name],
            },
        )
    return {"computed": sorted(stale)}


if __name__ == "__main__":
    run("evaluate", __doc__, body)
