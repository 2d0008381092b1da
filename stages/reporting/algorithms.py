"""What the report says about one algorithm: curves, losses, where its results come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from stages.artifacts.files import read_json
from stages.artifacts.provenance import read_provenance
from stages.reporting.values import number

CURVE_POINTS = 90
# The curves that metrics store: names of their x and y, and what the axes are called.
AXES = {
    ("fpr", "tpr"): ("false positive rate", "true positive rate"),
    ("fpr", "pro"): ("false positive rate", "mean overlap of regions"),
    ("threshold", "localised"): ("threshold", "share localised"),
    ("recall", "precision"): ("recall", "precision"),
    ("fpr", "recall"): ("false positive rate", "recall"),
}
MARKDOWN = MarkdownIt("commonmark", {"html": False}).disable("image")


def prose(text: str) -> str:
    """Render a docstring's text as HTML; whatever it holds of HTML is shown as text."""
    return MARKDOWN.render(text.replace("``", "`"))


def thin(points: Sequence[float], digits: int = 4) -> list[float | None]:
    """Keep ``CURVE_POINTS`` points of a curve, the ends among them."""
    count = len(points)
    kept = sorted({round(i * (count - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)})
    chosen = range(count) if count <= CURVE_POINTS else kept
    return [number(f"{points[i]:.{digits}g}") for i in chosen]


def curve_of(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Take the curve of a metric's primary method over all images, if it has one to draw."""
    for value in record["values"]:
        if not (value["primary"] and value["defect_type"] == "all" and value["curve"]):
            continue
        for (x, y), labels in AXES.items():
            if x in value["curve"] and y in value["curve"]:
                limit = record["parameters"].get("limit") if y == "pro" else None
                return {
                    "labels": labels,
                    "x": thin(value["curve"][x]),
                    "y": thin(value["curve"][y]),
                    "limit": limit,
                    "mark": value["details"].get("threshold") if x == "threshold" else None,
                    "value": number(value["value"]),
                }
    return None


@dataclass
class Run:
    """One algorithm on one category with the first seed."""

    stamp: dict[str, Any]
    training: dict[str, Any]
    curves: dict[str, Any] = field(default_factory=dict)  # by metric

    @property
    def losses(self) -> dict[str, list[float | None]]:
        """Losses per epoch, by name; none where nothing is learned by steps."""
        epochs = self.training["losses"]
        names = dict.fromkeys(name for epoch in epochs for name in epoch)
        if len(epochs) < 2:
            return {}
        return {name: [number(epoch.get(name)) for epoch in epochs] for name in names}

    def provenance(self) -> dict[str, Any]:
        """Say in a few words where the result comes from."""
        stamp = self.stamp
        sources = {**stamp["upstream"], **{k: v for k, v in stamp["data"].items() if v}}
        machine = stamp["machine"]
        return {
            "fingerprint": stamp["fingerprint"],
            "commit": stamp["commit"] or "unknown",
            "sources": sources,
            "machine": f"{machine['processor']}, {machine['cores']} cores, "
            f"{stamp['threads']} threads, GPU {machine['gpu'] or 'none'}",
            "system": f"{machine['system']}, Python {machine['python']}",
            "packages": ", ".join(f"{k} {v}" for k, v in stamp["packages"].items() if v),
            "written": stamp["written"],
            "epochs": self.training["epochs"],
            "stopped_by": self.training["stopped_by"],
            "train_images": self.training.get("train_images"),
        }


Key = tuple[str, str, str]  # data set, category, algorithm


def model_sizes(stamps: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, int], int]:
    """Bytes of each model's files, by data set, category, algorithm and seed."""
    sizes = {}
    for stamp in stamps:
        key = stamp["key"]
        seed = int(key["seed"].removeprefix("seed"))
        files = {name: size for name, size in stamp["files"].items() if name.startswith("model/")}
        sizes[key["dataset"], key["category"], key["algorithm"], seed] = sum(files.values())
    return sizes


def read_runs(
    stamps: Mapping[Path, Mapping[str, Any]], metrics: Sequence[Path], seed: int
) -> dict[Key, Run]:
    """Read training logs and curves of all runs of one seed.

    Parameters
    ----------
    stamps
        Of all trainings, by path; ``training.json`` lies beside each.
    metrics
        Files of metrics of that seed.
    seed
        The one that is shown.
    """
    runs: dict[Key, Run] = {}
    for path, stamp in stamps.items():
        key = stamp["key"]
        if key["seed"] == f"seed{seed}":
            training = read_json(path.with_name("training.json"))
            place = (key["dataset"], key["category"], key["algorithm"])
            runs[place] = Run(dict(stamp), training)
    for path in metrics:
        record = read_json(path)
        run = runs.get((record["dataset"], record["category"], record["algorithm"]))
        curve = curve_of(record)
        if run is not None and curve is not None:
            run.curves[record["metric"]] = curve
    return runs


def read_stamps(paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Read the stamps of all trainings."""
    return {path: read_provenance(path) for path in paths}
