"""A faked run, as large as asked for: the files that stage `report` reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages import report
from stages.aggregate import COSTS, LONG, write_table
from stages.artifacts.job import Job
from stages.command import Options
from stages.pictures import strip

METRICS = ["image_auroc", "pixel_auroc", "aupro", "pl"]
TYPES = ["cut", "stain"]
CURVES = {
    "image_auroc": ("fpr", "tpr"),
    "pixel_auroc": ("fpr", "tpr"),
    "aupro": ("fpr", "pro"),
    "pl": ("threshold", "localised"),
}


@dataclass
class FakedRun:
    """Files of a run below a folder.

    Values of algorithm a, category c, metric m and seed s are 0.9 - 0.05 a + 0.01 c - 0.02 m +
    0.001 s; the last algorithm's first metric is undefined on the first category.
    """

    folder: Path
    algorithms: Sequence[str]
    datasets: Mapping[str, Sequence[str]]
    seeds: Sequence[int] = (0,)
    title: str = "A faked run"
    images: int = 4
    side: int = 64
    undefined: bool = True
    significance: bool = True
    inputs: dict[str, list[Path]] = field(default_factory=dict)

    def value(self, a: int, c: int, m: int, s: int) -> float | None:
        if self.undefined and a == len(self.algorithms) - 1 and c == 0 and m == 0:
            return None
        return 0.9 - 0.05 * a + 0.01 * c - 0.02 * m + 0.001 * s

    def add(self, kind: str, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.inputs.setdefault(kind, []).append(path)
        return path

    def safe(self, *names: str) -> Path:
        """A folder of its own, whatever the names hold."""
        return self.folder.joinpath(*(str(abs(hash(name))) for name in names))

    def write(self) -> Job:
        rng = np.random.default_rng(0)
        for dataset, categories in self.datasets.items():
            self.write_tables(dataset, categories)
            self.write_runs(dataset, categories)
            self.write_gallery(dataset, categories, rng)
            if self.significance:
                self.write_significance(dataset, categories)
        self.write_published()
        parameters = {
            "title": self.title,
            "preset": "faked",
            "metrics": METRICS,
            "metric_parameters": {name: {"metric": name, "parameters": {}} for name in METRICS},
            "seeds": list(self.seeds),
            "algorithms": {
                name: {
                    "title": f"Paper & <b>name</b> of {name}",
                    "idea": "An idea with ``code``, a <i>tag</i> and [a link](javascript:alert(1)). More.",
                    "notes": "* one\n* two",
                    "backbone": "resnet18",
                    "settings": {"epochs": 3},
                    "parameters": {"rate": 0.1, "text": '"><script>alert(1)</script>'},
                }
                for name in self.algorithms
            },
            "datasets": {
                name: {"categories": list(categories), "licence": None}
                for name, categories in self.datasets.items()
            },
            "protocol": {"image_size": 64},
            "budget_seconds": 60,
        }
        outputs = {"report": self.folder / "site" / "report"}
        return Job("report", {}, parameters, self.inputs, outputs, "", {}, "", "cpu")

    def build(self) -> Path:
        """Write the files, run the stage, and return the site's folder."""
        job = self.write()
        report.body(job, Options(1, "cpu", False))
        return job.outputs["report"]

    def write_tables(self, dataset: str, categories: Sequence[str]) -> None:
        common = {"dataset": dataset, "method": "main", "primary": True, "backbone": "resnet18",
                  "image_size": 64, "evaluation_size": 64, "commit": "abc", "good_images": 5,
                  "threads": 1, "cores": 2, "processor": "A processor", "packages": "numpy 2",
                  "system": "Linux", "epochs": 3, "stopped_by": "epochs", "cpu_seconds": 1.0}  # fmt: skip
        runs = [
            {**common, "algorithm": algorithm, "category": category, "seed": seed,
             "train_seconds": 10.0 * (a + 1), "inference_seconds_per_image": 0.001 * (9 - a % 9),
             "peak_rss_bytes": 10**8 * (a + 1)}
            for c, category in enumerate(categories)
            for a, algorithm in enumerate(self.algorithms)
            for seed in self.seeds
        ]  # fmt: skip
        names = {name: a for a, name in enumerate(self.algorithms)}
        places = {name: c for c, name in enumerate(categories)}
        rows = [
            {**run, "metric": metric, "defect_type": kind,
             "value": (value := self.value(names[run["algorithm"]], places[run["category"]], m, run["seed"])),
             "reason": "no good image" if value is None else None,
             "defective_images": 10 if kind == "all" else 5, "fingerprint": "f"}
            for run in runs
            for m, metric in enumerate(METRICS)
            for kind in ("all", *TYPES)
        ]  # fmt: skip
        place = self.safe(dataset)
        write_table(self.add("long", place / "long.csv"), pd.DataFrame(rows).reindex(columns=LONG))
        write_table(
            self.add("costs", place / "costs.csv"), pd.DataFrame(runs).reindex(columns=COSTS)
        )

    def write_runs(self, dataset: str, categories: Sequence[str]) -> None:
        for algorithm in self.algorithms:
            for category in categories:
                for seed in self.seeds:
                    place = self.safe(dataset, algorithm, category) / f"seed{seed}"
                    key = {
                        "algorithm": algorithm,
                        "dataset": dataset,
                        "category": category,
                        "seed": f"seed{seed}",
                    }
                    stamp = {
                        "key": key, "files": {"model/model.safetensors": 2_000_000, "training.json": 9},
                        "fingerprint": "f" * 64, "upstream": {"features/x": "e" * 64}, "data": {"train": "d" * 64},
                        "commit": "abc", "written": "2026-01-01T00:00:00Z", "threads": 1,
                        "machine": {"processor": "A processor", "cores": 2, "gpu": None, "system": "Linux", "python": "3.11"},
                        "packages": {"numpy": "2.0", "torch": None},
                    }  # fmt: skip
                    training = {"epochs": 3, "stopped_by": "epochs", "train_images": 9,
                                "losses": [{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.5}]}  # fmt: skip
                    path = self.add("train_provenance", place / "provenance.json")
                    path.write_text(json.dumps(stamp))
                    (place / "training.json").write_text(json.dumps(training))
                    for metric in METRICS if seed == self.seeds[0] else ():
                        self.write_metric(place / f"{metric}.json", key, metric)

    def write_metric(self, path: Path, key: Mapping[str, str], metric: str) -> None:
        points = np.linspace(0, 1, 250)
        curve = dict(zip(CURVES[metric], (points.tolist(), np.sqrt(points).tolist()), strict=True))
        value = {"method": "main", "primary": True, "defect_type": "all", "value": 0.9, "reason": None,
                 "details": {"threshold": 0.5}, "curve": curve}  # fmt: skip
        record = {
            **key,
            "metric": metric,
            "parameters": {"limit": 0.3} if metric == "aupro" else {},
            "values": [value],
        }
        self.add("metrics", path).write_text(json.dumps(record))

    def write_gallery(
        self, dataset: str, categories: Sequence[str], rng: np.random.Generator
    ) -> None:
        kinds = [*TYPES, "good"]
        ids = [(f"test/{kinds[i % 3]}/{i:03}", kinds[i % 3]) for i in range(self.images)]
        # The data set is its folder's name, as in results/gallery/<dataset>/images.
        place = self.safe(dataset) / "gallery" / dataset.replace("/", "_")
        images = self.add("pictures", place / "images")
        images.mkdir()
        shown = {
            category: {
                "test_images": self.images + 2,
                "images": [
                    {"id": image, "defect_type": kind, "label": int(kind != "good"),
                     "outline": "" if kind == "good" else "M100 100L300 100L300 300Z",
                     "boxes": [] if kind == "good" else ["M90 90L310 90L310 310L90 310Z"]}
                    for image, kind in ids
                ],
            }
            for category in categories
        }  # fmt: skip
        for category in categories:
            tiles = [
                np.kron(rng.integers(90, 160, (16, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
                for _ in ids
            ]
            strip(tiles, self.side, self.file(images, category), 80)
        (images / "images.json").write_text(json.dumps({"dataset": dataset, "categories": shown}))
        for a, algorithm in enumerate(self.algorithms):
            folder = self.add("gallery", place / "algorithms" / f"a{a}")
            folder.mkdir(parents=True)
            said = {}
            for category in categories:
                tiles = [
                    np.kron(rng.integers(0, 255, (8, 8)), np.ones((8, 8))).astype(np.uint8)
                    for _ in ids
                ]
                strip(tiles, self.side // 2, self.file(folder, category), 80)
                said[category] = {
                    "scale": [0.0, 1.0], "iou_limit": 0.3,
                    "images": [
                        {"id": image, "score": 0.5, "share": round((i + a) % 5 / 4, 2),
                         "overlaps": [] if kind == "good" else [0.1 + 0.15 * ((i + a) % 5)]}
                        for i, (image, kind) in enumerate(ids)
                    ],
                }  # fmt: skip
            text = json.dumps({"algorithm": algorithm, "dataset": dataset, "categories": said})
            (folder / "gallery.json").write_text(text)

    def file(self, folder: Path, category: str) -> Path:
        path = folder / f"{category}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_significance(self, dataset: str, categories: Sequence[str]) -> None:
        folder = self.add(
            "significance", self.safe(dataset) / "significance" / dataset.replace("/", "_")
        )
        folder.mkdir()

        def table(name: str, columns: str, rows: list[list[Any]]) -> None:
            with (folder / name).open("w", newline="") as file:
                csv.writer(file).writerows([columns.split(","), *rows])

        cells = [(a, m) for a in self.algorithms for m in METRICS]
        table("intervals.csv", "algorithm,category,metric,value,low,high,seeds,images,reason",
              [[a, c, m, 0.8, 0.75, 0.85, 1, 10, ""] for a, m in cells for c in (*categories, "mean")])  # fmt: skip
        table("ranks.csv", "algorithm,metric,mean_rank,wins", [[a, m, 1.5, 1] for a, m in cells])
        table("pairs.csv", "metric,first,second,difference,low,high,p_nemenyi,p_wilcoxon,p_holm,reason",
              [[m, self.algorithms[0], b, 0.1, 0.05, 0.2, 0.04, 0.0004, "", ""] for m in METRICS for b in self.algorithms[1:]])  # fmt: skip
        test = {"friedman": {"statistic": 4.0, "p": 0.04, "categories": 3, "reason": None}, "critical_difference": 1.2,
                "alpha": 0.05, "confidence": 0.95, "groups": [list(self.algorithms[:2])], "paper_measure": []}  # fmt: skip
        (folder / "tests.json").write_text(json.dumps(dict.fromkeys(METRICS, test)))
        (folder / "critical_difference_pl.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"/>'
        )

    def write_published(self) -> None:
        dataset, categories = next(iter(self.datasets.items()))
        path = self.add("published", self.folder / "published" / "one.csv")
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([
                ["source", "dataset", "metric", "algorithm", "category", "value"],
                ["one", dataset, "image_auroc", self.algorithms[0], "mean", 0.95],
                ["one", dataset, "image_auroc", self.algorithms[0], categories[0], 0.96],
                ["one", "another", "image_auroc", self.algorithms[0], "mean", 0.11],
            ])  # fmt: skip
        sources = self.add("sources", self.folder / "published" / "sources.yaml")
        sources.write_text(
            'one: {title: "A <b>paper</b>", url: "https://example.org", year: 2024, protocol: Theirs.}\n'
        )
