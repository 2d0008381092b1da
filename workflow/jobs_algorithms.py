"""Jobs of each algorithm, category and seed: training, prediction, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from params import models
from workflow.job import (
    TRAINING,
    TRUTH,
    VALIDATION,
    Job,
)
from workflow.jobs_data import DataJobs


@dataclass
class Needed:
    """What an algorithm needs besides its category's images or features."""

    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, list[str]] = field(default_factory=dict)
    upstream: list[Job] = field(default_factory=list)
    data: dict[str, str | None] = field(default_factory=dict)


class AlgorithmJobs(DataJobs):
    """A method per stage."""

    def _augmented(
        self, algorithm: str, dataset: str, category: str, index: Job, check: Job
    ) -> Needed:
        """What only a training on augmented images reads besides."""
        needed = Needed()
        if self._augmentation is None:
            return needed
        needed.parameters["augmentation"] = self._augmentation
        if self._declared(algorithm).inputs == "features":
            copies = [
                self._augment(backbone, dataset, category, index, check)
                for backbone in self._config(algorithm).backbones
            ]
            needed.inputs["augmented"] = [job.outputs["features"] for job in copies]
            needed.upstream += copies
        return needed

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
        changed = self._augmented(algorithm, dataset, category, index, check)
        module = "augmented.train" if self._augmentation else "train"
        learned = TRAINING | (VALIDATION if "validation" in declared.needs else frozenset())
        read = {
            name: value
            for name, value in config.parameters.items()
            if name not in declared.prediction_parameters
        }
        place = f"results/models/{algorithm}/{dataset}/{category}/seed{seed}"
        own = {"index": [index.outputs["index"]]}
        inputs = {**own, **lessons.inputs, **beside.inputs, **changed.inputs}
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
                **changed.parameters,
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
            self.source.program(f"stages.{module}", f"algorithms.{config.algorithm}", *modules),
            inputs=inputs,
            upstream=[*sources, *lessons.upstream, *beside.upstream, *changed.upstream],
            waits_for=[check],
            data={**data, **beside.data},
            sees={
                **{job.name: TRAINING for job in beside.upstream},
                **{job.name: learned for job in sources},
            },
            module=module,
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
                **{
                    name: paths
                    for name, paths in train.inputs.items()
                    if name not in ("outside", "augmented")
                },
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

    def _resample(self, predict: Job, index: Job, check: Job) -> Job:
        run, comparison = self.run, self.run.comparison
        place = "results/resampled/" + "/".join(predict.key.values())
        return Job(
            "resample",
            dict(predict.key),
            {
                "metrics": {name: metric.model_dump() for name, metric in run.metrics.items()},
                "evaluation_size": self.protocol.evaluation_size,
                "crop": self.protocol.crop,
                "root": run.datasets[predict.key["dataset"]].root,
                "resamples": comparison.resamples,
                "seed": comparison.seed,
            },
            {"resampled": f"{place}.h5", "provenance": f"{place}.provenance.json"},
            self.source.program("stages.resample"),
            inputs={"maps": [predict.outputs["maps"]], "index": [index.outputs["index"]]},
            upstream=[predict, index],
            waits_for=[check],
            sees={index.name: TRUTH},
        )
