"""Show how Proportion Localised judges an algorithm (the paper's Figures 3 and 4).

`regions` lays out anomalies from the worst overlap to the best: region, box, prediction and what
counts, at the threshold that localises most. `thresholds` is the share of anomalies localised over
all thresholds, for several limits of the overlap. It decides nothing; values are those of the
metric's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import visionad_metrics
from stages.artifacts.files import StageError, atomic_path
from stages.artifacts.images import load_image
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.artifacts.maps import read_info, read_maps, read_scores
from stages.command import Options, run
from stages.drawing import COLOURS, GREY, STYLE, save
from stages.evaluate import read_truth, resize_maps
from visionad_metrics.localisation import PLResult

LIMITS = (0.1, 0.3, 0.5, 0.7)
# The metric's own figure has frames around its panels and titles above them.
PANELS: dict[Any, Any] = {
    "axes.spines.top": True,
    "axes.spines.right": True,
    "axes.titlelocation": "center",
}


def draw_thresholds(result: PLResult, title: str) -> Figure:
    """Draw the share of anomalies localised over thresholds; the metric's own limit stands out."""
    own = result.details["iou_limit"]
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, limit in enumerate(sorted({*LIMITS, own})):
        share = (result.ious > limit).mean(axis=1)
        label, width = f"IoU > {limit:g}", 1.0
        if limit == own:
            label, width = f"{label} (the metric)", 2.2
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(result.thresholds, share, color=colour, linewidth=width, label=label)
    axes.axvline(result.thresholds[result.best], color=GREY, linestyle="--", linewidth=0.8)
    axes.plot(result.thresholds[result.best], result.value, "o", color=GREY, zorder=3)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("threshold of the anomaly map" + (", negated" if result.negated else ""))
    axes.set_ylabel("share of anomalies localised")
    axes.grid()
    axes.legend()
    figure.suptitle(title, x=0.01, ha="left")
    axes.set_title(
        f"PL {result.value:.3f}: {int(result.localised.sum())} of {len(result.boxes)} anomalies "
        f"at threshold {result.thresholds[result.best]:.4g}"
    )
    return figure


def say(reason: str, title: str) -> Figure:
    """Draw a reason where there is nothing else to draw."""
    figure = Figure(figsize=(7.0, 1.2), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    figure.text(0.01, 0.2, f"PL is undefined: {reason}")
    return figure


def draw(
    result: PLResult, images: np.ndarray, maps: np.ndarray, masks: np.ndarray, title: str, rows: int
) -> dict[str, tuple[Figure, str]]:
    """Draw both figures, and say what they show: by name."""
    if not result.boxes:
        reason = str(result.reason)
        words = f"{title}: PL is undefined: {reason}."
        return {name: (say(reason, title), words) for name in ("regions", "thresholds")}
    with mpl.rc_context(PANELS):
        regions = result.draw(images, maps, masks, rows, "spread")
    ious = result.ious[result.best]
    found = int(result.localised.sum())
    value = f"{found} of {len(ious)} anomalies localised, PL {result.value:.3f}"
    return {
        "regions": (
            regions,
            f"{title}: {value}. Anomalies from the worst overlap of box and prediction "
            f"({ious.min():.2f}) to the best ({ious.max():.2f}): image, region and box, anomaly "
            "map and prediction, and what counts as found, missed, too much or ignored.",
        ),
        "thresholds": (
            draw_thresholds(result, title),
            f"{title}: share of anomalies localised over thresholds of the anomaly map. {value}, "
            f"with overlaps above {result.details['iou_limit']:g}, at threshold "
            f"{result.thresholds[result.best]:.4g}.",
        ),
    }


def measure(
    job: Job, parameters: Mapping[str, Any]
) -> tuple[PLResult, np.ndarray, np.ndarray, np.ndarray]:
    """Compute PL of the job's maps; also images, maps and masks, (N, S, S, ...) each.

    Raises
    ------
    StageError
        If there is no map of an image of the index.
    """
    info = read_info(job.input("maps"))
    table = usable(read_index(job.input("index")), "test")
    if missing := sorted(set(table["image_id"]) - set(info.ids)):
        raise StageError(f"{job.input('maps')}: no map of {missing[0]}; run snakemake again")
    places = np.array([info.ids.index(image_id) for image_id in table["image_id"]])
    folder, size = Path(parameters["root"]) / job.key["category"], parameters["evaluation_size"]
    truth = read_truth(folder, table, size, parameters["crop"])
    maps = resize_maps(read_maps(job.input("maps"), info.primary_map, places), size)
    scores = read_scores(job.input("maps"), info.primary_score)[places]
    samples = visionad_metrics.Samples(maps, truth.masks, scores, truth.labels)
    result = visionad_metrics.compute_on(samples, "pl", parameters["pl"])
    assert isinstance(result, PLResult)
    images = [
        load_image(folder / path, size, parameters["crop"], parameters["interpolation"])
        for path in table["path"]
    ]
    return result, np.stack(images), maps, truth.masks


def body(job: Job, options: Options) -> dict[str, Any]:
    """Draw the figures of the job's algorithm and category."""
    parameters, settings = job.parameters, job.parameters["figures"]
    result, images, maps, masks = measure(job, parameters)
    title = f"{job.key['algorithm']} on {job.key['dataset']}/{job.key['category']}"
    with atomic_path(job.outputs["localisation"]) as folder, mpl.rc_context(STYLE):
        folder.mkdir()
        figures = draw(result, images, maps, masks, title, settings["sheet_rows"])
        for name, (figure, words) in figures.items():
            save(figure, folder, name, settings["formats"], settings["dpi"], words)
    return {"anomalies": len(result.boxes)}


if __name__ == "__main__":
    run("localisation", __doc__, body)
