"""Which jobs a run has: one method per stage says what it reads, writes and depends on.

This is the one place that knows what a stage's result depends on: a parameter that is not put into
its job's ``parameters`` here cannot reach the stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from params import models
from params.hyperparameters import Declaration, declaration
from params.reading import ParamsError, Run, read_algorithm, read_run, read_teacher
from stages.artifacts.files import StageError, images_in
from stages.artifacts.stamp import Stamp, read_stamp
from stages.artifacts.weights import weights_path
from workflow.fingerprint import Code, HashCache, Program, digest, sha256_file
from workflow.sources import source_digests

ROOT = Path(__file__).resolve().parents[1]
PLAN_FOLDER = Path(".plan")
# Where the images lie says nothing about what they show.
ADDRESSES = ("root", "outside_folders", "pretraining_folders", "textures_folder")
# What a job's key may hold, in the order in which it makes the job's name.
FIELDS = ("page", "backbone", "teacher", "algorithm", "dataset", "category", "seed")
DATA_PARTS = ("train", "validation", "test", "ground_truth")
# What a job may read of a data set: all jobs below an index see these parts of it only. A changed
# mask trains nothing anew, and neither does a changed test image.
TRAINING, VALIDATION, TEST = (frozenset({part}) for part in DATA_PARTS[:3])
TRUTH, EVERYTHING = frozenset({"test", "ground_truth"}), frozenset(DATA_PARTS)


@dataclass
class Job:
    """One run of one stage."""

    stage: str
    key: dict[str, str]
    parameters: dict[str, Any]
    outputs: dict[str, str]
    program: Program
    inputs: dict[str, list[str]] = field(default_factory=dict)
    upstream: list[Job] = field(default_factory=list)
    waits_for: list[Job] = field(default_factory=list)  # order only: no part of the fingerprint
    # Digests of source data, by name. Of those named as DATA_PARTS a job below may see some only.
    data: dict[str, str | None] = field(default_factory=dict)
    sees: dict[str, frozenset[str]] = field(default_factory=dict)  # by name of a job above
    part_programs: dict[str, Program] = field(default_factory=dict)  # code of each part alone
    versions: dict[str, str] = field(init=False)  # of the packages that decide the result
    forced: bool = False  # asked for by --forcerun: parts are not kept

    def __post_init__(self) -> None:
        self.own = self.program
        if self.part_programs:  # the packages that parts import decide the whole
            programs = (self.own, *self.part_programs.values())
            versions = {k: v for program in programs for k, v in program.versions.items()}
            self.program = replace(self.own, versions=versions)
        self.set_versions(self.program.versions)

    def set_versions(self, versions: dict[str, str]) -> None:
        """Set the package versions that the result is to be made with, or was made with."""
        self.versions = versions
        self._seen: dict[frozenset[str], str] = {}
        self.__dict__.pop("parts", None)

    @property
    def name(self) -> str:
        """E.g. ``train/patchcore/demo/weave/seed0``."""
        return "/".join([self.stage, *self.key.values()])

    @property
    def file(self) -> Path:
        """The job file, relative to the repository."""
        return PLAN_FOLDER / f"{self.name}.json"

    @cached_property
    def parts(self) -> dict[str, str]:
        """Fingerprints of parts that are kept while only others change."""
        common = {k: v for k, v in self.parameters.items() if k not in (*ADDRESSES, "metrics")}
        above = sorted(self.above().values())
        parts = {}
        for name, program in self.part_programs.items():
            packages = {*self.own.versions, *program.versions}
            versions = {k: v for k, v in self.versions.items() if k in packages}
            code = [self.own.digest, program.digest]
            metric = self.parameters["metrics"][name]
            parts[name] = digest([name, metric, common, code, versions, above])
        return parts

    @property
    def fingerprint(self) -> str:
        """What the job's result depends on, all of it, as one digest."""
        return self.seen(EVERYTHING)

    def seen(self, parts: frozenset[str]) -> str:
        """Fingerprint of what a job below sees that reads only some parts of the source data."""
        if parts in self._seen:
            return self._seen[parts]
        hashed = {k: v for k, v in self.parameters.items() if k not in ADDRESSES}
        code = [self.program.digest, self.versions]
        data = {k: v for k, v in self.data.items() if k in parts or k not in DATA_PARTS}
        above = sorted(
            job.seen(self.sees.get(job.name, EVERYTHING) & parts) for job in self.upstream
        )
        content = [self.stage, self.key, hashed, code, data, above, self.parts]
        return self._seen.setdefault(parts, digest(content))

    def above(self) -> dict[str, str]:
        """What this job sees of the jobs above it: fingerprints by name."""
        return {job.name: job.seen(self.sees.get(job.name, EVERYTHING)) for job in self.upstream}

    def accept(self, stamped: Stamp | None) -> bool:
        """Take over the package versions of an artefact that differs in nothing else."""
        if stamped is None or stamped.versions is None or stamped.versions == self.versions:
            return False
        self.set_versions(stamped.versions)
        if self.fingerprint == stamped.fingerprint and stamped.is_whole():
            return True
        self.set_versions(self.program.versions)
        return False

    def text(self, device: str, store: str | None) -> str:
        """Contents of the job file."""
        return (
            json.dumps(
                {
                    "stage": self.stage,
                    "key": self.key,
                    "parameters": self.parameters,
                    "inputs": self.inputs,
                    "outputs": self.outputs,
                    "fingerprint": self.fingerprint,
                    "parts": self.parts,
                    "code": self.program.digest,
                    "versions": self.versions,
                    "data": self.data,
                    "upstream": self.above(),
                    "forced": self.forced,
                    "device": device,
                    "store": store,
                },
                indent=1,
            )
            + "\n"
        )


@dataclass
class Needed:
    """What an algorithm needs besides its category's images or features."""

    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, list[str]] = field(default_factory=dict)
    upstream: list[Job] = field(default_factory=list)
    data: dict[str, str | None] = field(default_factory=dict)


class Jobs:
    """All jobs of a run, built from its parameters.

    Parameters
    ----------
    root
        The repository's folder.
    overrides
        Values laid over ``params/benchmark.yaml``, as given to ``snakemake --config``.
    """

    def __init__(self, root: Path = ROOT, overrides: Mapping[str, Any] | None = None) -> None:
        self.root = root
        self.overrides = dict(overrides or {})
        self.run: Run = read_run(root, self.overrides)
        self.cache = HashCache(root / PLAN_FOLDER / "hashes.json")
        self.source = Code(root, self.cache)
        self.jobs: dict[str, Job] = {}
        self.stamps: dict[str, Stamp | None] = {}
        self.other_versions: list[Job] = []  # kept, though made with other package versions
        self._weights: dict[str, Any] = {}
        self._listings: dict[str, str] = {}
        self._build()
        self.cache.save()

    def _add(self, job: Job) -> Job:
        if job.name in self.jobs:
            return self.jobs[job.name]
        self.jobs[job.name] = job
        stamp = self.stamps[job.name] = read_stamp(self.root / job.outputs["provenance"])
        if self.run.benchmark.pipeline.package_versions == "warn" and job.accept(stamp):
            self.other_versions.append(job)
        return job

    def _build(self) -> None:
        for dataset in self.run.datasets:
            self._build_dataset(dataset)
        self._add(self._summary())
        if self.run.benchmark.page is not None:
            self._add(self._page(self.run.benchmark.page))

    def _build_dataset(self, dataset: str) -> None:
        categories, run = self.run.categories[dataset], self.run
        indexes = [self._add(self._index(dataset, category)) for category in categories]
        check = self._add(self._check(dataset, indexes))
        leaves: list[tuple[Job, Job, Job]] = []
        for algorithm in run.algorithms:
            predictions = []
            for category, index in zip(categories, indexes, strict=True):
                sources = self._sources(algorithm, dataset, category, index, check)
                for seed in run.benchmark.seeds:
                    train = self._add(
                        self._train(algorithm, dataset, category, seed, sources, index, check)
                    )
                    predict = self._add(self._predict(train, sources, index, check))
                    evaluate = self._add(self._evaluate(predict, index, check))
                    leaves.append((train, predict, evaluate))
                    if seed == run.benchmark.seeds[0]:
                        predictions.append(predict)
                        if run.benchmark.learning_epochs:
                            self._add(self._learning(train, index))
            self._add(self._sheet(algorithm, dataset, predictions, indexes))
        aggregate = self._add(self._aggregate(dataset, leaves))
        self._add(self._figures(dataset, aggregate))

    # --- geometry and weights -------------------------------------------------------------------

    def _image_size(self, dataset: str, backbone: str | None = None) -> int:
        """The network's own size, else the data set's, else the protocol's."""
        own = self.run.backbones[backbone].image_size if backbone else None
        return own or self.run.datasets[dataset].image_size or self.protocol.image_size

    @property
    def protocol(self) -> models.Protocol:
        """How images become arrays."""
        return self.run.benchmark.protocol

    def _geometry(self, dataset: str, backbone: str | None = None) -> dict[str, Any]:
        return self._square(self._image_size(dataset, backbone))

    def _square(self, size: int) -> dict[str, Any]:
        return {
            "image_size": size,
            "crop": self.protocol.crop,
            "interpolation": self.protocol.interpolation,
        }

    def _config(self, algorithm: str) -> models.Algorithm:
        """A configuration of the run, or one that another builds upon."""
        return self.run.algorithms.get(algorithm) or self.run.bases[algorithm]

    def _listed(self, folder: str, key: str) -> str:
        """Digest of the images in a folder by name and size: ImageNet's contents take too long."""
        if folder not in self._listings:
            place = self.root / folder
            images = [
                (str(path.relative_to(place)), path.stat().st_size) for path in images_in(place)
            ]
            if not images:
                raise ParamsError(f"{key}: {place} holds no image")
            self._listings[folder] = digest(images)
        return self._listings[folder]

    def _weights_digest(self, name: str) -> str | None:
        """Hash of a backbone's weights file; for timm's own the name says it all.

        Raises
        ------
        ParamsError
            If the file, or the package that carries it, is missing.
        """
        if name not in self._weights:
            weights = self.run.backbones[name].weights.model_dump()
            if weights["source"] == "file":
                weights["path"] = str(self.root / weights["path"])
            try:
                path = weights_path(weights)
            except StageError as error:
                raise ParamsError(f"params/backbones/{name}.yaml: weights: {error}") from None
            self._weights[name] = path and self.cache.get("sha256", path, sha256_file)
        return self._weights[name]

    @property
    def _usable_test(self) -> frozenset[str]:
        """What decides which test images there are: with `skip`, masks and twins in training do."""
        return TEST if self.run.benchmark.checks.policy == "fail" else EVERYTHING

    # --- one method per stage -------------------------------------------------------------------

    def _index(self, dataset: str, category: str) -> Job:
        config = self.run.datasets.get(dataset) or self.run.pretraining[dataset][0]
        layout = "mvtec" if isinstance(config, models.Demo) else config.kind
        place = f"results/index/{dataset}/{category}"
        job = Job(
            "index",
            {"dataset": dataset, "category": category},
            {"root": config.root, "layout": layout},
            {"index": f"{place}.parquet", "provenance": f"{place}.provenance.json"},
            self.source.program("stages.index", f"stages.layouts.{layout}"),
        )
        if isinstance(config, models.Visa):
            job.parameters["split_csv"] = config.split_csv
        if isinstance(config, models.Demo):
            job.upstream.append(self._add(self._demo_data(dataset, category, config)))
            job.inputs["category"] = [f"{config.root}/{category}"]
        else:
            job.data = source_digests(config, self.root / config.root / category, self.cache)
        return job

    def _demo_data(self, dataset: str, category: str, config: models.Demo) -> Job:
        place = f"{config.root}/{category}"
        names = ("seed", "size", "train_good", "test_good", "per_defect")
        return Job(
            "demo_data",
            {"dataset": dataset, "category": category},
            {name: getattr(config, name) for name in names},
            {"category": place, "provenance": f"{place}.provenance.json"},
            self.source.program("stages.demo_data"),
        )

    def _check(self, dataset: str, indexes: list[Job]) -> Job:
        checks, place = self.run.benchmark.checks, f"results/check/{dataset}"
        return Job(
            "check",
            {"dataset": dataset},
            {**checks.model_dump(), "root": self.run.datasets[dataset].root},
            {"check": f"{place}/check.json", "provenance": f"{place}/provenance.json"},
            self.source.program("stages.check"),
            inputs={"indexes": [job.outputs["index"] for job in indexes]},
            upstream=list(indexes),
        )

    def _sources(
        self, algorithm: str, dataset: str, category: str, index: Job, check: Job
    ) -> list[Job]:
        """The jobs whose output an algorithm reads: features, or the index of the images."""
        if self._declared(algorithm).inputs == "images":
            return [index]
        return [
            self._features(backbone, dataset, category, index, check)
            for backbone in self._config(algorithm).backbones
        ]

    @cached_property
    def _pretraining(self) -> list[tuple[str, Job]]:
        """Category folders and indexes of the images that teachers learn from.

        Made once: each index looks at all files of its category.
        """
        return [
            (f"{config.root}/{category}", self._add(self._index(dataset, category)))
            for dataset, (config, categories) in self.run.pretraining.items()
            for category in categories
        ]

    def _teach(self, name: str) -> Job:
        """The job that makes a teacher, once for all categories."""
        config, place = self.run.teachers[name], f"results/teachers/{name}"
        parameters: dict[str, Any] = {
            "teacher": config.teacher,
            "parameters": config.parameters,
            "steps": config.steps,
            "batch_size": config.batch_size,
            "seed": 0,
            "weights": config.weights,
            **self._square(config.image_size),
            "mean": self.protocol.mean,
            "std": self.protocol.std,
        }
        modules = ["stages.teach", f"algorithms.teachers.{config.teacher}"]
        data: dict[str, str | None] = {}
        if config.backbone is not None:
            backbone = self.run.backbones[config.backbone]
            parameters |= {
                "backbone": backbone.model_dump(mode="json"),
                "layers": config.layers,
                "mean": backbone.mean,
                "std": backbone.std,
            }
            modules.append("stages.backbone")
            data["weights"] = self._weights_digest(config.backbone)
        if config.weights is not None:
            path = self.root / config.weights
            if not path.is_file():
                raise ParamsError(f"params/teachers/{name}.yaml: weights: {path} is not there")
            data["published"] = self.cache.get("sha256", path, sha256_file)
        folder, indexes = self.run.benchmark.pretraining_images, []
        if config.weights is None and folder is not None:
            parameters["pretraining_folders"] = [folder]
            data["images"] = self._listed(folder, "pretraining_images")
        elif config.weights is None:
            indexes = self._pretraining
            parameters["pretraining_folders"] = [place for place, _ in indexes]
        return self._add(
            Job(
                "teach",
                {"teacher": name},
                parameters,
                {
                    "model": f"{place}/model",
                    "training": f"{place}/training.json",
                    "provenance": f"{place}/provenance.json",
                },
                self.source.program(*modules),
                inputs={"index": [index.outputs["index"] for _, index in indexes]},
                upstream=[index for _, index in indexes],
                data=data,
                sees={index.name: TRAINING for _, index in indexes},
            )
        )

    def _features(self, backbone: str, dataset: str, category: str, index: Job, check: Job) -> Job:
        place = f"results/features/{backbone}/{dataset}/{category}"
        return self._add(
            Job(
                "features",
                {"backbone": backbone, "dataset": dataset, "category": category},
                {
                    "backbone": self.run.backbones[backbone].model_dump(mode="json"),
                    **self._geometry(dataset, backbone),
                    "root": self.run.datasets[dataset].root,
                },
                {"features": f"{place}.h5", "provenance": f"{place}.provenance.json"},
                self.source.program("stages.features"),
                inputs={"index": [index.outputs["index"]]},
                upstream=[index],
                waits_for=[check],
                data={"weights": self._weights_digest(backbone)},
                sees={index.name: TRAINING | VALIDATION | self._usable_test},
            )
        )

    def _algorithm_parameters(self, algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
        config = self._config(algorithm)
        parameters = {
            "algorithm": config.algorithm,
            "parameters": config.parameters,
            "seed": seed,
            **self._geometry(dataset, *config.backbones[:1]),
            "root": self.run.datasets[dataset].root,
        }
        if self._declared(algorithm).inputs == "features":
            return parameters | {"layers": config.layers}
        if not config.backbones:
            return parameters | {"mean": self.protocol.mean, "std": self.protocol.std}
        backbone = self.run.backbones[config.backbones[0]]
        return parameters | {
            "backbone": backbone.model_dump(mode="json"),
            "layers": config.layers,
            "mean": backbone.mean,
            "std": backbone.std,
        }

    def _declared(self, algorithm: str) -> Declaration:
        file = f"{self._config(algorithm).algorithm}.py"
        return declaration(self.root / "algorithms" / file)

    def _network(self, algorithm: str) -> tuple[tuple[str, ...], dict[str, str | None]]:
        """Modules and weights that an algorithm which builds on a backbone depends on besides."""
        if not self._declared(algorithm).builds_on_backbone:
            return (), {}
        (backbone,) = self._config(algorithm).backbones
        return ("stages.backbone",), {"weights": self._weights_digest(backbone)}

    def _lessons(
        self, algorithm: str, dataset: str, category: str, seed: int, index: Job, check: Job
    ) -> Needed:
        """Teachers and the base that an algorithm builds upon, in training and prediction."""
        config, needed = self._config(algorithm), Needed()
        teachers = [self._teach(name) for name in config.teachers]
        if teachers:
            needed.inputs["teacher"] = [job.outputs["model"] for job in teachers]
            needed.upstream += teachers
        if config.base is not None:
            base = self._config(config.base)
            sources = self._sources(config.base, dataset, category, index, check)
            train = self._add(
                self._train(config.base, dataset, category, seed, sources, index, check)
            )
            needed.inputs["base"] = [train.outputs["model"]]
            needed.upstream.append(train)
            needed.parameters["base"] = {
                "algorithm": base.algorithm,
                "parameters": base.parameters,
            }
            if "teacher" in train.inputs:
                needed.inputs["base_teacher"] = train.inputs["teacher"]
        return needed

    def _beside(self, algorithm: str, dataset: str, category: str) -> Needed:
        """What only the training of an algorithm reads besides: other images, held-out ones."""
        needs, needed = self._declared(algorithm).needs, Needed()
        benchmark = self.run.benchmark
        if "validation" in needs:
            needed.parameters["validation"] = self._config(algorithm).validation
        if "textures" in needs and benchmark.textures is not None:
            needed.parameters["textures_folder"] = benchmark.textures
            needed.data["textures"] = self._listed(benchmark.textures, "textures")
        if "outside" in needs and benchmark.pretraining_images is not None:
            needed.parameters["outside_folders"] = [benchmark.pretraining_images]
            needed.data["outside"] = self._listed(
                benchmark.pretraining_images, "pretraining_images"
            )
        elif "outside" in needs:
            # By place: two data sets may share a folder, at other sizes.
            own = (self.root / self.run.datasets[dataset].root / category).resolve()
            others = [
                (place, index)
                for place, index in self._pretraining
                if (self.root / place).resolve() != own
            ]
            needed.parameters["outside_folders"] = [place for place, _ in others]
            needed.inputs["outside"] = [index.outputs["index"] for _, index in others]
            needed.upstream += [index for _, index in others]
        return needed

    def _train(
        self,
        algorithm: str,
        dataset: str,
        category: str,
        seed: int,
        sources: list[Job],
        index: Job,
        check: Job,
    ) -> Job:
        config = self._config(algorithm)
        declared, (modules, data) = self._declared(algorithm), self._network(algorithm)
        lessons = self._lessons(algorithm, dataset, category, seed, index, check)
        beside = self._beside(algorithm, dataset, category)
        learned = TRAINING | (VALIDATION if "validation" in declared.needs else frozenset())
        read = {
            name: value
            for name, value in config.parameters.items()
            if name not in declared.prediction_parameters
        }
        place = f"results/models/{algorithm}/{dataset}/{category}/seed{seed}"
        inputs = {"index": [index.outputs["index"]], **lessons.inputs, **beside.inputs}
        if index not in sources:
            inputs["features"] = [source.outputs["features"] for source in sources]
        return Job(
            "train",
            {
                "algorithm": algorithm,
                "dataset": dataset,
                "category": category,
                "seed": f"seed{seed}",
            },
            {
                **self._algorithm_parameters(algorithm, dataset, seed),
                **lessons.parameters,
                **beside.parameters,
                "parameters": read,
                "epochs": config.epochs,
                "batch_size": config.batch_size,
                "train_seconds": self.run.benchmark.budget.train_seconds,
            },
            {
                "model": f"{place}/model",
                "training": f"{place}/training.json",
                "provenance": f"{place}/provenance.json",
            },
            self.source.program("stages.train", f"algorithms.{config.algorithm}", *modules),
            inputs=inputs,
            upstream=[*sources, *lessons.upstream, *beside.upstream],
            waits_for=[check],
            data={**data, **beside.data},
            sees={
                **{job.name: TRAINING for job in beside.upstream},
                **{job.name: learned for job in sources},
            },
        )

    def _predict(self, train: Job, sources: list[Job], index: Job, check: Job) -> Job:
        algorithm, dataset = (train.key[key] for key in ("algorithm", "dataset"))
        modules, data = self._network(algorithm)
        lessons = self._lessons(
            algorithm, dataset, train.key["category"], train.parameters["seed"], index, check
        )
        place = "results/maps/" + "/".join(train.key.values())
        return Job(
            "predict",
            dict(train.key),
            {
                **self._algorithm_parameters(algorithm, dataset, train.parameters["seed"]),
                **lessons.parameters,
            },
            {"maps": f"{place}.h5", "provenance": f"{place}.provenance.json"},
            self.source.program(
                "stages.predict",
                f"algorithms.{self._config(algorithm).algorithm}",
                *modules,
            ),
            inputs={
                **{name: paths for name, paths in train.inputs.items() if name != "outside"},
                "model": [train.outputs["model"]],
                "training": [train.outputs["training"]],
            },
            upstream=[train, *sources, *lessons.upstream],
            waits_for=[check],
            data=data,
            sees={source.name: self._usable_test for source in sources},
        )

    def _evaluate(self, predict: Job, index: Job, check: Job) -> Job:
        run, dataset = self.run, predict.key["dataset"]
        metrics = {name: metric.model_dump() for name, metric in run.metrics.items()}
        place = "results/metrics/" + "/".join(predict.key.values())
        outputs = {name: f"{place}/{name}.json" for name in metrics}
        config = run.datasets[dataset]
        averaged = (
            {"mean_of_types": config.mean_of_types} if isinstance(config, models.Loco) else {}
        )
        return Job(
            "evaluate",
            dict(predict.key),
            {
                "metrics": metrics,
                "evaluation_size": self.protocol.evaluation_size,
                "crop": self.protocol.crop,
                "by_defect_type": run.by_defect_type,
                "root": run.datasets[dataset].root,
                **averaged,
            },
            {**outputs, "provenance": f"{place}/provenance.json"},
            self.source.program("stages.evaluate"),
            inputs={"maps": [predict.outputs["maps"]], "index": [index.outputs["index"]]},
            upstream=[predict, index],
            waits_for=[check],
            sees={index.name: TRUTH},
            # A metric's code counts for its own file only.
            part_programs={
                name: self.source.program(f"visionad_metrics.catalogue.{metric['metric']}")
                for name, metric in metrics.items()
            },
        )

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
                "stages.learning",
                f"algorithms.{train.parameters['algorithm']}",
                *self._network(key["algorithm"])[0],
                *(f"visionad_metrics.catalogue.{one['metric']}" for one in metrics.values()),
            ),
            inputs=train.inputs,
            upstream=list({job.name: job for job in (*train.upstream, index)}.values()),
            waits_for=list(train.waits_for),
            data=train.data,
        )

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
                "title": benchmark.title,
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

    def _figures(self, dataset: str, aggregate: Job) -> Job:
        benchmark, place = self.run.benchmark, f"results/figures/{dataset}/leaderboard"
        return Job(
            "figures",
            {"dataset": dataset},
            {
                "figures": self.run.figures.model_dump(),
                "title": benchmark.title,
                "algorithms": benchmark.algorithms,
                "metrics": benchmark.metrics,
                "categories": self.run.categories[dataset],
            },
            {"figures": place, "provenance": f"{place}.provenance.json"},
            self.source.program("stages.figures"),
            inputs={"long": [aggregate.outputs["long"]]},
            upstream=[aggregate],
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

    def _page(self, page: models.Page) -> Job:
        run, name = self.run, Path(page.path).stem
        aggregates = [self.jobs[f"aggregate/{dataset}"] for dataset in run.datasets]
        inputs = {kind: [job.outputs[kind] for job in aggregates] for kind in ("long", "costs")}
        data = None
        if page.published and (self.root / page.published).is_file():
            inputs["published"] = [page.published]
            data = self.cache.get("sha256", self.root / page.published, sha256_file)
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
                "title": run.benchmark.title,
                "preset": self.overrides.get("preset"),
                "datasets": datasets,
                "page": page.path,
                "settings": {d: self._settings(d) for d in run.datasets},
                "training": self._training(),
                "budget_seconds": run.benchmark.budget.train_seconds,
            },
            {"page": page.path, "provenance": f"results/figures/page/{name}.provenance.json"},
            self.source.program("stages.page"),
            inputs=inputs,
            upstream=aggregates,
            data={"published": data},
        )
