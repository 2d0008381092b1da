"""Measure an algorithm while it learns: metrics of the test images after so many epochs.

For the paper's Figure 2, how metrics behave in training. It decides nothing: no leaderboard reads
it, and the epochs at which it looks are set beforehand.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

import visionad_metrics
from stages.aggregate import write_table
from stages.artifacts.files import atomic_path
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.command import Options, run
from stages.drawing import COLOURS, STYLE, save
from stages.evaluate import read_truth, resize_maps
from stages.predict import predict_images

if TYPE_CHECKING:
    from stages.inputs import Opening


def learning_table(job: Job, options: Options, opening: Opening | None) -> pd.DataFrame:
    """Train in legs and measure after each: one row per leg, one column per metric.

    A leg goes on where the last one ended, so that the last row is what an undisturbed training
    of as many epochs gives.

    """
    from stages.devices import prepare, seed_everything
    from stages.inputs import create_algorithm, open_reader, open_training
    from stages.trainer import Checkpoint, train

    device, parameters = prepare(options.device, options.threads), job.parameters
    table = usable(read_index(job.input("index")), "test")
    category = Path(parameters["root"]) / job.key["category"]
    truth = read_truth(category, table, parameters["evaluation_size"], parameters["crop"])
    rows = []
    with (
        (opening or open_training)(job, options.threads) as (images, held_out),
        open_reader(job, "test", options.threads) as test_images,
        tempfile.TemporaryDirectory() as folder,
    ):
        checkpoint = Checkpoint(Path(folder) / "checkpoint", job.fingerprint)
        for epochs in parameters["epochs"]:
            seed_everything(parameters["seed"], 0)
            algorithm = create_algorithm(job, images.shapes, len(images), device, options.threads)
            leg = {**parameters, "epochs": epochs}
            progress = train(algorithm, images, leg, checkpoint, options.progress, held_out)
            checkpoint.save(algorithm, progress)
            maps, scores, _ = predict_images(algorithm, test_images)
            map_method, score_method = algorithm.primary
            samples = visionad_metrics.Samples(
                resize_maps(maps[map_method], parameters["evaluation_size"]),
                truth.masks,
                scores[score_method],
                truth.labels,
                truth.channels,
            )
            values = {
                name: visionad_metrics.compute_on(
                    samples, metric["metric"], metric["parameters"]
                ).value
                for name, metric in parameters["metrics"].items()
            }
            losses = progress.losses[-1] if progress.losses else {}
            rows.append({"epochs": epochs, "train_seconds": progress.seconds, **values, **losses})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, metrics: list[str], title: str) -> Figure:
    """Draw metrics over epochs, each named at the end of its line."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    last = {}
    for place, metric in enumerate(metrics):
        colour = COLOURS[place % len(COLOURS)]
        values = table[metric]
        axes.plot(table["epochs"], values, color=colour, marker="o", markersize=4, linewidth=1.6)
        if not math.isnan(values.iloc[-1]):
            last[metric] = (values.iloc[-1], colour)
    low, high = axes.get_ylim()
    gap, floor = 0.05 * (high - low), -math.inf
    for metric, (value, colour) in sorted(last.items(), key=lambda item: item[1][0]):
        floor = max(value, floor + gap)  # names of close lines are moved apart
        axes.annotate(
            f"{metric} {value:.3f}",
            (1.01, floor),
            xycoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
        )
    axes.set_xscale("log")
    axes.set_xticks(table["epochs"], [str(epochs) for epochs in table["epochs"]])
    axes.minorticks_off()
    axes.set_xlabel("epochs of training")
    axes.grid(color="#E5E5E5")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def describe(table: pd.DataFrame, metrics: list[str], title: str) -> str:
    """Say in words what :func:`draw` shows."""
    first, last = table.iloc[0], table.iloc[-1]
    values = ", ".join(f"{name} from {first[name]:.3f} to {last[name]:.3f}" for name in metrics)
    return f"{title}: from {first['epochs']:g} to {last['epochs']:g} epochs: {values}."


def body(job: Job, options: Options, opening: Opening | None = None) -> dict[str, Any]:
    """Write `learning.csv` and the figure."""
    table, settings = learning_table(job, options, opening), job.parameters["figures"]
    title = f"{job.key['algorithm']} while it learns ({job.key['dataset']}/{job.key['category']})"
    with atomic_path(job.outputs["learning"]) as folder, mpl.rc_context(STYLE):
        folder.mkdir()
        write_table(folder / "learning.csv", table)
        figure = draw(table, list(job.parameters["metrics"]), title)
        words = describe(table, list(job.parameters["metrics"]), title)
        save(figure, folder, "learning", settings["formats"], settings["dpi"], words)
    return {"train_seconds": float(table["train_seconds"].iloc[-1]), "legs": len(table)}


if __name__ == "__main__":
    run("learning", __doc__, body)
