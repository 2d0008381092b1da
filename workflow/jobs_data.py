"""Jobs on data, networks and teachers: what algorithms read, shared by all of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from params import models
from params.hyperparameters import Declaration, declaration
from params.reading import ParamsError, Run, read_run
from stages.artifacts.files import StageError, images_in
from stages.artifacts.stamp import Stamp, read_stamp
from stages.artifacts.weights import weights_path
from workflow.fingerprint import Code, HashCache, digest, sha256_file
from workflow.job import (
    EVERYTHING,
    PLAN_FOLDER,
    TEST,
    TRAINING,
    VALIDATION,
    Job,
)
from workflow.sources import source_digests


class DataJobs:
    """A run's parameters and its jobs so far; a method per stage."""

    def __init__(self, root: Path, overrides: Mapping[str, Any]) -> None:
        self.root = root
        self.overrides = dict(overrides)
        self.run: Run = read_run(root, self.overrides)
        self.cache = HashCache(root / PLAN_FOLDER / "hashes.json")
        self.source = Code(root, self.cache)
        self.jobs: dict[str, Job] = {}
        self.stamps: dict[str, Stamp | None] = {}
        self.other_versions: list[Job] = []  # kept, though made with other package versions
        self._weights: dict[str, Any] = {}
        self._listings: dict[str, str] = {}

    def _add(self, job: Job) -> Job:
        if job.name in self.jobs:
            return self.jobs[job.name]
        self.jobs[job.name] = job
        stamp = self.stamps[job.name] = read_stamp(self.root / job.outputs["provenance"])
        if self.run.benchmark.pipeline.package_versions == "warn" and job.accept(stamp):
            self.other_versions.append(job)
        return job

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

    def _augment(self, backbone: str, dataset: str, category: str, index: Job, check: Job) -> Job:
        place = f"results/features/{backbone}/{dataset}/augmented/{category}"
        features = self._features(backbone, dataset, category, index, check)
        return self._add(
            Job(
                "augment",
                dict(features.key),
                {**features.parameters, "augmentation": self._augmentation},
                {"features": f"{place}.h5", "provenance": f"{place}.provenance.json"},
                self.source.program("stages.augment"),
                inputs=features.inputs,
                upstream=[index],
                waits_for=[check],
                data=features.data,
                sees={index.name: TRAINING},
            )
        )

    @property
    def _augmentation(self) -> dict[str, Any] | None:
        """What is done to training images, if anything."""
        augmentation = self.protocol.augmentation
        return None if augmentation is None else augmentation.model_dump()

    def _declared(self, algorithm: str) -> Declaration:
        file = f"{self._config(algorithm).algorithm}.py"
        return declaration(self.root / "algorithms" / file)

    def _network(self, algorithm: str) -> tuple[tuple[str, ...], dict[str, str | None]]:
        """Modules and weights that an algorithm which builds on a backbone depends on besides."""
        if not self._declared(algorithm).builds_on_backbone:
            return (), {}
        (backbone,) = self._config(algorithm).backbones
        return ("stages.backbone",), {"weights": self._weights_digest(backbone)}
