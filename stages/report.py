"""Write the report of a run: a site that opens from the disk, `results/report/index.html`.

It shows the leaderboards of all data sets with their published values, categories by defect type,
each algorithm's idea, parameters, curves, losses and provenance, a gallery of anomaly maps, what
accuracy costs, and how sure the differences are. Nothing is loaded from a network, and all numbers
come from files that other stages have made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from stages import aggregate
from stages.aggregate import read_table, unique
from stages.artifacts.files import StageError, atomic_path, read_json
from stages.artifacts.job import Job
from stages.command import Options, run
from stages.published import read_published
from stages.reporting.algorithms import Run, model_sizes, prose, read_runs, read_stamps
from stages.reporting.pictures import gallery_of
from stages.reporting.site import Site, first_sentence, slug
from stages.reporting.values import (
    dataset_of,
    number,
    published_of,
    significance_of,
    types_of,
)

PAGES = {
    "index.html": "Leaderboard",
    "categories.html": "Categories",
    "algorithms.html": "Algorithms",
    "gallery.html": "Gallery",
    "cost.html": "Cost",
    "significance.html": "Significance",
    "about.html": "About",
}
COSTS = {
    "train_seconds": "training, s",
    "inference_ms": "inference, ms/image",
    "peak_mb": "peak memory, MB",
    "gpu_mb": "GPU memory, MB",
    "model_mb": "model, MB",
}


class Report:
    """What all pages are made from.

    Parameters
    ----------
    job
        Says what there is.
    site
        Where the pages go.
    """

    def __init__(self, job: Job, site: Site) -> None:
        self.job, self.site, self.parameters = job, site, job.parameters
        self.datasets: dict[str, list[str]] = {
            name: one["categories"] for name, one in job.parameters["datasets"].items()
        }
        self.algorithms: dict[str, Any] = job.parameters["algorithms"]
        tables = {
            kind: [read_table(path, columns) for path in job.inputs[kind]]
            for kind, columns in (("long", aggregate.LONG), ("costs", aggregate.COSTS))
        }
        self.long, self.costs = (
            dict(zip(self.datasets, tables[kind], strict=True)) for kind in ("long", "costs")
        )
        stamps = read_stamps(job.inputs["train_provenance"])
        self.sizes = model_sizes(list(stamps.values()))
        self.runs = read_runs(stamps, job.inputs["metrics"], job.parameters["seeds"][0])
        self.significance: dict[str, Any] = {}
        for folder in job.inputs.get("significance", ()):
            found = significance_of(folder)
            if found is not None:
                found["diagrams"] = {
                    path.stem.removeprefix("critical_difference_"): site.take(
                        path, f"significance/{slug(folder.name)}/{slug(path.stem)}.svg"
                    )
                    for path in sorted(folder.glob("critical_difference_*.svg"))
                }
                found["described"] = {
                    path.stem.removeprefix("critical_difference_"): path.read_text("utf-8").strip()
                    for path in sorted(folder.glob("critical_difference_*.txt"))
                }
                self.significance[folder.name] = found

    def data(self) -> dict[str, Any]:
        """Lay out what the scripts of several pages read."""
        by_dataset = {
            dataset: dataset_of(
                self.long[dataset],
                self.costs[dataset],
                {(c, a, s): size for (d, c, a, s), size in self.sizes.items() if d == dataset},
                self.parameters,
                categories,
            )
            | {"pages": [f"categories/{slug(dataset)}/{slug(c)}.html" for c in categories]}
            for dataset, categories in self.datasets.items()
        }
        for dataset, found in self.significance.items():
            by_dataset[dataset]["intervals"] = found["intervals"]
            by_dataset[dataset]["confidence"] = next(
                (one.get("confidence") for one in found["tests"].values()), None
            )
        published, sources = read_published(self.job.inputs.get("published", ()))
        return {
            "title": self.parameters["title"],
            "algorithms": {name: f"algorithms/{slug(name)}.html" for name in self.algorithms},
            "datasets": by_dataset,
            "published": published_of(published, self.datasets),
            "sources": {name: source.model_dump() for name, source in sources.items()},
            "costs": COSTS,
        }

    def write(self) -> None:
        """Write all pages."""
        site, data = self.site, self.data()
        site.assets()
        site.script("data/report.js", "REPORT", data)
        used = {
            source
            for metrics in data["published"].values()
            for algorithms in metrics.values()
            for categories in algorithms.values()
            for cell in categories.values()
            for source in cell
        }
        site.page("index.html", "leaderboard.html.j2")
        site.page("categories.html", "categories.html.j2", datasets=data["datasets"])
        site.page("cost.html", "cost.html.j2")
        self.write_categories(data)
        self.write_algorithms(data)
        self.write_gallery()
        self.write_significance()
        site.page(
            "about.html",
            "about.html.j2",
            parameters=self.parameters,
            facts=self.facts(),
            sources={name: one for name, one in data["sources"].items() if name in used},
        )

    def facts(self) -> dict[str, str]:
        """Say what the runs were made on and with."""
        costs = pd.concat(list(self.costs.values()))
        return {
            "processor": unique(costs["processor"]),
            "cores": unique(costs["cores"]),
            "threads": unique(costs["threads"]),
            "gpu": unique(costs["gpu"], missing="none"),
            "system": unique(costs["system"]),
            "packages": unique(costs["packages"], missing="unknown"),
            "commit": aggregate.commits(costs),
        }

    def write_categories(self, data: dict[str, Any]) -> None:
        """Write a page per category: values by defect type."""
        for dataset, categories in self.datasets.items():
            pages = data["datasets"][dataset]["pages"]
            for place, category in enumerate(categories):
                table = types_of(self.long[dataset], category)
                metrics = [
                    (metric, rows_of(of_metric(table, metric)))
                    for metric in self.parameters["metrics"]
                ]
                self.site.page(
                    pages[place],
                    "category.html.j2",
                    dataset=dataset,
                    category=category,
                    metrics=metrics,
                    images=image_counts(self.long[dataset], category),
                    before=pages[place - 1] if place else None,
                    after=pages[place + 1] if place + 1 < len(pages) else None,
                    algorithm_pages=data["algorithms"],
                )

    def write_algorithms(self, data: dict[str, Any]) -> None:
        """Write the list of algorithms, and a page for each."""
        listed = []
        for name, said in self.algorithms.items():
            runs = {key: run for key, run in self.runs.items() if key[2] == name}
            listed.append((name, data["algorithms"][name], said, first_sentence(said["idea"])))
            self.site.page(
                data["algorithms"][name],
                "algorithm.html.j2",
                data=charts_of(runs),
                name=name,
                said=said,
                idea=prose(said["idea"]),
                notes=prose(said["notes"]),
                runs=[(key[0], key[1], run.provenance()) for key, run in runs.items()],
                summary=self.summary_of(name, data),
                seed=self.parameters["seeds"][0],
            )
        self.site.page("algorithms.html", "algorithms.html.j2", listed=listed)

    def summary_of(self, name: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Lay out an algorithm's values and costs, a row per category."""
        rows = []
        for dataset, one in data["datasets"].items():
            for place, category in enumerate(one["categories"]):
                seeds = {m: one["values"].get(m, {}).get(name) for m in one["metrics"]}
                values = {m: table and mean(table[place]) for m, table in seeds.items()}
                costs = one["costs"].get(name, [None] * len(one["categories"]))[place] or {}
                page = one["pages"][place]
                rows.append(
                    {"dataset": dataset, "category": category, "page": page}
                    | {"values": values, "costs": costs}
                )
        return rows

    def write_gallery(self) -> None:
        """Write the gallery's page, and a script of data for each data set."""
        images = {path.parent.name: path for path in self.job.inputs.get("pictures", ())}
        parts: dict[str, dict[str, Path]] = {name: {} for name in images}
        for folder in self.job.inputs.get("gallery", ()):
            key = read_json(folder / "gallery.json")
            if key["dataset"] not in parts:
                raise StageError(f"{folder}: of a data set without pictures: {key['dataset']}")
            parts[key["dataset"]][key["algorithm"]] = folder
        scripts = {}
        for dataset, place in images.items():
            found = gallery_of(self.site, place, parts[dataset], self.datasets[dataset])
            scripts[dataset] = f"data/gallery_{slug(dataset)}.js"
            self.site.script(scripts[dataset], "GALLERY", {"dataset": dataset, **found})
        self.site.page("gallery.html", "gallery.html.j2", data=scripts, datasets=list(images))

    def write_significance(self) -> None:
        """Write the page of intervals and tests, which also says how to make them."""
        scripts = {}
        for dataset, found in self.significance.items():
            scripts[dataset] = f"data/significance_{slug(dataset)}.js"
            self.site.script(scripts[dataset], "SIGNIFICANCE", {"dataset": dataset, **found})
        missing = [name for name in self.datasets if name not in self.significance]
        self.site.page(
            "significance.html",
            "significance.html.j2",
            data=scripts,
            missing=missing,
            datasets=list(scripts),
        )


def mean(values: list[float | None]) -> float | None:
    """Take a mean that is undefined as soon as one value is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def of_metric(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Select a metric's rows, without types that it has no values of; `all` stays."""
    rows = table[table.index.get_level_values("metric") == metric].droplevel("metric")
    return rows[[kind for kind in rows.columns if kind == "all" or rows[kind].notna().any()]]


def rows_of(table: pd.DataFrame) -> dict[str, Any]:
    """Lay a table out as its columns and its rows, the best of the first column first."""
    columns = [str(name) for name in table.columns]
    rows: list[tuple[str, list[Any]]] = [
        (str(name), [number(value) for value in row]) for name, row in table.iterrows()
    ]
    rows.sort(key=lambda row: (row[1][0] is None, -(row[1][0] or 0), row[0]))
    best: list[list[float]] = []
    for column in range(len(columns)):
        known = {round(values[column], 3) for _, values in rows if values[column] is not None}
        best.append(sorted(known, reverse=True)[:2])
    return {"columns": columns, "rows": rows, "best": best}


def image_counts(long: pd.DataFrame, category: str) -> dict[str, tuple[int, int]]:
    """Count good and defective test images of each defect type."""
    rows = long[long["category"] == category].drop_duplicates("defect_type")
    return {
        str(kind): (int(good), int(bad))
        for kind, good, bad in zip(
            rows["defect_type"], rows["good_images"], rows["defective_images"], strict=True
        )
    }


def charts_of(runs: dict[tuple[str, str, str], Run]) -> dict[str, Any]:
    """Lay out what an algorithm's page draws."""
    return {
        f"{dataset}/{category}": {"curves": one.curves, "losses": one.losses}
        for (dataset, category, _), one in runs.items()
    }


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the report."""
    with atomic_path(job.outputs["report"]) as folder:
        common = {"title": job.parameters["title"], "pages": PAGES, "costs": COSTS}
        report = Report(job, Site(folder, common))
        report.write()
        files = [path for path in folder.rglob("*") if path.is_file()]
    return {"files": len(files)}


if __name__ == "__main__":
    run("report", __doc__, body)
