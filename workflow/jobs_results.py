"""Jobs that make of results what people look at: tables, figures, report, pages."""

from __future__ import annotations

import ast
from functools import cached_property
from pathlib import Path
from typing import Any

from params import models
from params.hyperparameters import metric_parameters
from params.reading import ParamsError, read_algorithm, read_teacher, read_yaml
from workflow.fingerprint import sha256_file
from workflow.job import (
    TRUTH,
    Job,
)
from workflow.jobs_algorithms import AlgorithmJobs

SOURCES = "sources.yaml"  # says where the published values of the tables beside it come from
PL = Path("metrics/visionad_metrics/catalogue/pl.py")  # whose boxes the gallery shows


def idea(source: Path) -> dict[str, str]:
    """Read what an algorithm's file says about itself: its title, its idea, what differs."""
    from workflow.describe import sections

    found = sections(ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "")
    title, _, text = found[""].partition("\n")
    return {"title": title.strip(), "idea": text.strip(), "notes": found.get("Note", "")}


class ResultJobs(AlgorithmJobs):
    """A method per stage."""

    @property
    def _title(self) -> str:
        """The run's title, which says so where training images are augmented."""
        changes = [f"{name} {value}" for name, value in (self._augmentation or {}).items() if value]
        said = f"; training images augmented: {', '.join(changes)}" if changes else ""
        return f"{self.run.benchmark.title}{said}"

    def _learning(self, train: Job, index: Job) -> Job:
        metrics = {name: metric.model_dump() for name, metric in self.run.metrics.items()}
        key = train.key
        if train.parameters["epochs"] == 1:
            raise ParamsError(
                f"learning_epochs: {key['algorithm']} is fitted in one epoch and does not learn "
                "from epoch to epoch; leave it out of this run"
            )
        place = "/".join(
            ["results/figures", key["dataset"], "learning", key["algorithm"], key["category"]]
        )
        place = f"{place}/{key['seed']}"
        module = "augmented.learning" if self._augmentation else "learning"
        return Job(
            "learning",
            dict(key),
            {
                **train.parameters,
                "parameters": self.run.algorithms[key["algorithm"]].parameters,
                "epochs": self.run.benchmark.learning_epochs,
                "train_seconds": None,
                "metrics": metrics,
                "evaluation_size": self.protocol.evaluation_size,
                "figures": self.run.figures.model_dump(),
            },
            {"learning": place, "provenance": f"{place}.provenance.json"},
            self.source.program(
                f"stages.{module}",
                f"algorithms.{train.parameters['algorithm']}",
                *self._network(key["algorithm"])[0],
                *(f"visionad_metrics.catalogue.{one['metric']}" for one in metrics.values()),
            ),
            inputs=train.inputs,
            upstream=list({job.name: job for job in (*train.upstream, index)}.values()),
            waits_for=list(train.waits_for),
            data={**train.data, **self._style()},
            module=module,
        )

    def _localisation(self, predict: Job, index: Job) -> Job:
        dataset, pl = predict.key["dataset"], self._pl
        algorithm, category = predict.key["algorithm"], predict.key["category"]
        if pl is None:
            raise ParamsError("localisation: the run has no metric pl to show; add it to metrics")
        place = f"results/figures/{dataset}/localisation/{algorithm}/{category}"
        return Job(
            "localisation",
            {"algorithm": algorithm, "dataset": dataset, "category": category},
            {
                "crop": self.protocol.crop,
                "interpolation": self.protocol.interpolation,
                "evaluation_size": self.protocol.evaluation_size,
                "root": self.run.datasets[dataset].root,
                "pl": pl,
                "figures": self.run.figures.model_dump(),
            },
            {"localisation": place, "provenance": f"{place}.provenance.json"},
            self.source.program("stages.localisation", "visionad_metrics.catalogue.pl"),
            inputs={"maps": [predict.outputs["maps"]], "index": [index.outputs["index"]]},
            upstream=[predict, index],
            data=self._style(),
            sees={index.name: TRUTH},
        )

    @property
    def _pl(self) -> dict[str, Any] | None:
        """Parameters of the run's first Proportion Localised, whose boxes are drawn."""
        found = (one.parameters for one in self.run.metrics.values() if one.metric == "pl")
        return next(found, None)

    def _style(self) -> dict[str, str | None]:
        """Digest of the style that figures are drawn in."""
        path = self.root / "params" / "figures.mplstyle"
        if not path.is_file():
            raise ParamsError(f"{path}: no such file")
        return {"style": self.cache.get("sha256", path, sha256_file)}

    def _settings(self, dataset: str) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "backbone": " + ".join(config.backbones) or None,
                "image_size": self._image_size(dataset, *config.backbones[:1]),
                "epochs": config.epochs,
                "train_seconds": self.run.benchmark.budget.train_seconds,
            }
            for name, config in self.run.algorithms.items()
        }

    def _training(self) -> dict[str, dict[str, Any]]:
        """How long each algorithm and its teachers train at most, here and in the publication."""

        def said(config: models.Algorithm) -> dict[str, Any]:
            steps = config.parameters.get("steps_per_epoch")
            if draws := config.parameters.get("draws_per_epoch"):
                steps = -(-draws // config.batch_size)
            return {
                "epochs": config.epochs,
                "batch_size": config.batch_size,
                "steps_per_epoch": steps,
            }

        settings: dict[str, dict[str, Any]] = {}
        for name, config in self.run.algorithms.items():
            settings[name] = {
                "here": said(config),
                "publication": said(read_algorithm(self.root, name, None, "page")),
                "base": config.base,
                "teachers": {
                    teacher: {
                        "here": self.run.teachers[teacher].steps,
                        "publication": read_teacher(self.root, teacher, None, "page").steps,
                    }
                    for teacher in config.teachers
                },
            }
        return settings

    def _aggregate(self, dataset: str, leaves: list[tuple[Job, Job, Job]]) -> Job:
        benchmark, place = self.run.benchmark, f"results/leaderboard/{dataset}"
        trains, predicts, evaluates = zip(*leaves, strict=True)
        return Job(
            "aggregate",
            {"dataset": dataset},
            {
                "dataset": dataset,
                "title": self._title,
                "categories": self.run.categories[dataset],
                "algorithms": benchmark.algorithms,
                "seeds": benchmark.seeds,
                "metrics": benchmark.metrics,
                "settings": self._settings(dataset),
                "evaluation_size": self.protocol.evaluation_size,
            },
            {
                "long": f"{place}/long.csv",
                "costs": f"{place}/costs.csv",
                "leaderboard": f"{place}/leaderboard.md",
                "tables": f"{place}/tables",
                "provenance": f"{place}/provenance.json",
            },
            self.source.program("stages.aggregate"),
            inputs={
                "metrics": [job.outputs[name] for job in evaluates for name in benchmark.metrics],
                "train_provenance": [job.outputs["provenance"] for job in trains],
                "predict_provenance": [job.outputs["provenance"] for job in predicts],
            },
            upstream=[*trains, *predicts, *evaluates],
        )

    def _compare(self, dataset: str, aggregate: Job, resamples: list[Job]) -> Job:
        benchmark, place = self.run.benchmark, f"results/significance/{dataset}"
        return Job(
            "compare",
            {"dataset": dataset},
            {
                **self.run.comparison.model_dump(),
                "title": self._title,
                "algorithms": benchmark.algorithms,
                "metrics": benchmark.metrics,
                "categories": self.run.categories[dataset],
                "seeds": benchmark.seeds,
            },
            {"significance": place, "provenance": f"{place}.provenance.json"},
            self.source.program("stages.compare"),
            inputs={
                "long": [aggregate.outputs["long"]],
                "resampled": [job.outputs["resampled"] for job in resamples],
            },
            upstream=[aggregate, *resamples],
            data=self._style(),
        )

    def _figures(self, dataset: str, aggregate: Job, compare: Job) -> Job:
        benchmark, place = self.run.benchmark, f"results/figures/{dataset}"
        return Job(
            "figures",
            {"dataset": dataset},
            {
                "figures": self.run.figures.model_dump(),
                "title": self._title,
                "algorithms": benchmark.algorithms,
                "metrics": benchmark.metrics,
                "categories": self.run.categories[dataset],
                "confidence": self.run.comparison.confidence,
            },
            {
                "figures": f"{place}/leaderboard",
                "costs": f"{place}/costs",
                "provenance": f"{place}/leaderboard.provenance.json",
            },
            self.source.program("stages.figures"),
            inputs={
                "long": [aggregate.outputs["long"]],
                "costs": [aggregate.outputs["costs"]],
                "significance": [compare.outputs["significance"]],
            },
            upstream=[aggregate, compare],
            data=self._style(),
        )

    def _sheet(
        self, algorithm: str, dataset: str, predictions: list[Job], indexes: list[Job]
    ) -> Job:
        place = f"results/figures/{dataset}/sheets/{algorithm}"
        return Job(
            "sheet",
            {"algorithm": algorithm, "dataset": dataset},
            {
                **self._geometry(dataset, *self.run.algorithms[algorithm].backbones[:1]),
                "evaluation_size": self.protocol.evaluation_size,
                "categories": self.run.categories[dataset],
                "root": self.run.datasets[dataset].root,
                "figures": self.run.figures.model_dump(),
            },
            {"sheet": place, "provenance": f"{place}.provenance.json"},
            self.source.program("stages.sheet"),
            inputs={
                "maps": [job.outputs["maps"] for job in predictions],
                "index": [job.outputs["index"] for job in indexes],
            },
            upstream=[*predictions, *indexes],
            data=self._style(),
            sees={index.name: TRUTH for index in indexes},
        )

    def _summary(self) -> Job:
        benchmark = self.run.benchmark
        aggregates = [self.jobs[f"aggregate/{dataset}"] for dataset in self.run.datasets]
        place = "results/summary"
        return Job(
            "summary",
            {},
            {
                "metrics": benchmark.metrics,
                "algorithms": benchmark.algorithms,
                "categories": dict(self.run.categories),
            },
            {
                "metrics": f"{place}/metrics.json",
                "means": f"{place}/means.csv",
                "categories": f"{place}/categories.csv",
                "provenance": f"{place}/provenance.json",
            },
            self.source.program("stages.summary"),
            inputs={"long": [job.outputs["long"] for job in aggregates]},
            upstream=aggregates,
        )

    def _gallery_parameters(self, dataset: str) -> dict[str, Any]:
        """What pictures and maps of the report's gallery have in common."""
        run, pl = self.run, self._pl
        if pl is None:
            pl = metric_parameters(self.root / PL)().model_dump(mode="json")
        return {
            "categories": run.categories[dataset],
            "root": run.datasets[dataset].root,
            "evaluation_size": self.protocol.evaluation_size,
            "crop": self.protocol.crop,
            "pl": pl,
        }

    def _pictures(self, dataset: str, indexes: list[Job]) -> Job:
        place, report = f"results/gallery/{dataset}/images", self.run.report
        return Job(
            "pictures",
            {"dataset": dataset},
            {
                **self._gallery_parameters(dataset),
                "interpolation": self.protocol.interpolation,
                "images_per_category": report.images_per_category,
                "thumbnail": report.image_side,
                "quality": report.quality,
            },
            {"pictures": place, "provenance": f"{place}.provenance.json"},
            self.source.program("stages.pictures", "visionad_metrics.catalogue.pl"),
            inputs={"index": [job.outputs["index"] for job in indexes]},
            upstream=list(indexes),
            sees={index.name: TRUTH for index in indexes},
        )

    def _gallery(
        self,
        algorithm: str,
        dataset: str,
        predictions: list[Job],
        indexes: list[Job],
        pictures: Job,
    ) -> Job:
        place, report = f"results/gallery/{dataset}/algorithms/{algorithm}", self.run.report
        return Job(
            "gallery",
            {"algorithm": algorithm, "dataset": dataset},
            {
                **self._gallery_parameters(dataset),
                "thumbnail": report.map_side,
                "quality": report.quality,
            },
            {"gallery": place, "provenance": f"{place}.provenance.json"},
            self.source.program("stages.gallery", "visionad_metrics.catalogue.pl"),
            inputs={
                "maps": [job.outputs["maps"] for job in predictions],
                "index": [job.outputs["index"] for job in indexes],
                "pictures": [pictures.outputs["pictures"]],
            },
            upstream=[*predictions, *indexes, pictures],
            sees={index.name: TRUTH for index in indexes},
        )

    def _described(self) -> dict[str, dict[str, Any]]:
        """What the report says of each algorithm: its idea, its settings and its parameters."""
        described = {}
        for name, config in self.run.algorithms.items():
            source = self.root / "algorithms" / f"{config.algorithm}.py"
            settings = {
                "algorithm": config.algorithm,
                "layers": ", ".join(config.layers),
                "teacher": ", ".join(config.teachers),
                "base": config.base or "",
                "epochs": config.epochs,
                "batch_size": config.batch_size,
            }
            described[name] = {
                **self.cache.get("idea", source, idea),
                "backbone": " + ".join(config.backbones),
                "settings": {key: value for key, value in settings.items() if value != ""},
                "parameters": config.parameters,
            }
        return described

    def _report(self) -> Job:
        run, place = self.run, "results/report"
        benchmark = run.benchmark
        kinds = ("aggregate", "compare", "train", "evaluate", "pictures", "gallery")
        above = {
            kind: [job for job in self.jobs.values() if job.stage == kind and "dataset" in job.key]
            for kind in kinds
        }
        first = f"seed{benchmark.seeds[0]}"
        published = sorted((self.root / "params" / "published").glob("*.csv"))
        sources = [path for path in (self.root / "params" / "published" / SOURCES,) if published]
        reporting = self.root / "stages" / "reporting"
        parts = ("assets", "templates")
        look = sorted(one for part in parts for one in (reporting / part).iterdir())
        files = {str(path.relative_to(self.root)): path for path in (*published, *sources, *look)}
        outputs = {kind: [job.outputs for job in jobs] for kind, jobs in above.items()}
        return Job(
            "report",
            {},
            {
                "title": self._title,
                "preset": self.overrides.get("preset", self._own_preset),
                "metrics": benchmark.metrics,
                "metric_parameters": {name: one.model_dump() for name, one in run.metrics.items()},
                "seeds": benchmark.seeds,
                "algorithms": self._described(),
                "datasets": {
                    dataset: {"categories": run.categories[dataset], "licence": config.licence}
                    for dataset, config in run.datasets.items()
                },
                "protocol": self.protocol.model_dump(mode="json"),
                "budget_seconds": benchmark.budget.train_seconds,
            },
            {"report": place, "provenance": "results/gallery/report.provenance.json"},
            self.source.program("stages.report"),
            inputs={
                "long": [one["long"] for one in outputs["aggregate"]],
                "costs": [one["costs"] for one in outputs["aggregate"]],
                "train_provenance": [one["provenance"] for one in outputs["train"]],
                "metrics": [
                    job.outputs[name]
                    for job in above["evaluate"]
                    if job.key["seed"] == first
                    for name in benchmark.metrics
                ],
                "pictures": [one["pictures"] for one in outputs["pictures"]],
                "gallery": [one["gallery"] for one in outputs["gallery"]],
                "significance": [one["significance"] for one in outputs["compare"]],
                "published": [name for name, path in files.items() if path in published],
                "sources": [name for name, path in files.items() if path in sources],
            },
            upstream=[job for jobs in above.values() for job in jobs],
            data={
                name: self.cache.get("sha256", path, sha256_file) for name, path in files.items()
            },
        )

    @cached_property
    def _own_preset(self) -> str | None:
        """The preset that params/benchmark.yaml names."""
        return read_yaml(self.root / "params" / "benchmark.yaml").get("preset")

    def _page(self, page: models.Page) -> Job:
        run, name = self.run, Path(page.path).stem
        aggregates = [self.jobs[f"aggregate/{dataset}"] for dataset in run.datasets]
        inputs = {kind: [job.outputs[kind] for job in aggregates] for kind in ("long", "costs")}
        data: dict[str, str | None] = {"published": None}
        if page.published:
            inputs["published"] = [page.published]
            data = self._published(page.published)
        datasets = [
            {
                "name": dataset,
                "categories": run.categories[dataset],
                "licence": run.datasets[dataset].licence,
            }
            for dataset in run.datasets
        ]
        return Job(
            "page",
            {"page": name},
            {
                "title": self._title,
                "preset": self.overrides.get("preset"),
                "datasets": datasets,
                "page": page.path,
                "settings": {d: self._settings(d) for d in run.datasets},
                "training": self._training(),
                "notes": page.notes,
                "budget_seconds": run.benchmark.budget.train_seconds,
            },
            {"page": page.path, "provenance": f"results/figures/page/{name}.provenance.json"},
            self.source.program("stages.page"),
            inputs=inputs,
            upstream=aggregates,
            data=data,
        )

    def _published(self, table: str) -> dict[str, str | None]:
        """Digests of a table of published values and of the sources beside it."""
        found: dict[str, str | None] = {}
        for name, place in (("published", Path(table)), ("sources", Path(table).parent / SOURCES)):
            if not (self.root / place).is_file():
                raise ParamsError(f"page.published: {self.root / place}: no such file")
            found[name] = self.cache.get("sha256", self.root / place, sha256_file)
        return found
