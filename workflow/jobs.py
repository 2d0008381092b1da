"""Which jobs a run has: one method per stage says what it reads, writes and depends on.

These modules (`jobs_data.py`, `jobs_algorithms.py`, `jobs_results.py`) are the one place that knows
what a stage's result depends on: a parameter that is not put into its job's ``parameters`` there
cannot reach the stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow.job import (
    ROOT,
    Job,
)
from workflow.jobs_results import ResultJobs


class Jobs(ResultJobs):
    """All jobs of a run, built from its parameters.

    Parameters
    ----------
    root
        The repository's folder.
    overrides
        Values laid over ``params/benchmark.yaml``, as given to ``snakemake --config``.
    """

    def __init__(self, root: Path = ROOT, overrides: Mapping[str, Any] | None = None) -> None:
        super().__init__(root, overrides or {})
        self._build()
        self.cache.save()

    def _build(self) -> None:
        for dataset in self.run.datasets:
            self._build_dataset(dataset)
        self._add(self._summary())
        self._add(self._report())
        if self.run.benchmark.page is not None:
            self._add(self._page(self.run.benchmark.page))

    def _build_dataset(self, dataset: str) -> None:
        categories, run = self.run.categories[dataset], self.run
        indexes = [self._add(self._index(dataset, category)) for category in categories]
        check = self._add(self._check(dataset, indexes))
        pictures = self._add(self._pictures(dataset, indexes))
        leaves: list[tuple[Job, Job, Job]] = []
        resamples: list[Job] = []
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
                    resamples.append(self._add(self._resample(predict, index, check)))
                    if seed == run.benchmark.seeds[0]:
                        predictions.append(predict)
                        if run.benchmark.learning_epochs:
                            self._add(self._learning(train, index))
                        if algorithm in run.benchmark.localisation:
                            self._add(self._localisation(predict, index))
            self._add(self._sheet(algorithm, dataset, predictions, indexes))
            self._add(self._gallery(algorithm, dataset, predictions, indexes, pictures))
        aggregate = self._add(self._aggregate(dataset, leaves))
        compare = self._add(self._compare(dataset, aggregate, resamples))
        self._add(self._figures(dataset, aggregate, compare))
