"""Reads ``params/``: inheritance, variants, presets, command-line values, and clear errors."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from params import models
from params.hyperparameters import (
    DeclarationError,
    declaration,
    metric_parameters,
    registered_files,
    teacher_parameters,
)

ModelT = TypeVar("ModelT", bound=BaseModel)

# By name of the distribution: a folder `wandb` where one works would count as a module.
TRACKERS = {"wandb": ("wandb",), "mlflow": ("mlflow-skinny", "mlflow")}


class ParamsError(ValueError):
    """One or more things wrong in the configuration, each with file, key and remedy."""


@dataclass(frozen=True)
class Run:
    """Everything that one run has configured, validated and with all inheritance resolved."""

    benchmark: models.Benchmark
    algorithms: Mapping[str, models.Algorithm]
    backbones: Mapping[str, models.Backbone]
    datasets: Mapping[str, models.AnyDataset]
    categories: Mapping[str, list[str]]
    metrics: Mapping[str, models.Metric]
    by_defect_type: bool
    figures: models.Figures
    comparison: models.Comparison
    report: models.Report
    bases: Mapping[str, models.Algorithm]  # what algorithms build upon, listed or not
    teachers: Mapping[str, models.Teacher]
    # Whose training images teachers learn from: data set and its categories, by name.
    pretraining: Mapping[str, tuple[models.AnyDataset, list[str]]]


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand once: PyYAML would silently keep the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor` is no key
                continue
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem=f"line {line}: a key must be a word"
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"line {line}: {key_node.value!r} stands twice"
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping; an empty file is an empty mapping.

    Raises
    ------
    ParamsError
        If the file is missing, is not YAML, or holds something else than a mapping.
    """
    if not path.is_file():
        raise ParamsError(f"{path}: no such file")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ParamsError(f"{path}: expected keys and values, found {type(data).__name__}")
    return data


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``: mappings merge key by key, all else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        # `datasets` is a choice, not a set of settings: naming one must not keep the others.
        both = isinstance(old, Mapping) and isinstance(value, Mapping) and key != "datasets"
        result[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def known_names(folder: Path) -> list[str]:
    """Names of the YAML files in ``folder``, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}known: {', '.join(known) or 'none'}"


def validate(model: type[ModelT], data: Mapping[str, Any], source: Path | str) -> ModelT:
    """Check ``data`` against a model.

    Raises
    ------
    ParamsError
        Listing every problem as ``file: key: what is wrong``; for an unknown key, the nearest one.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        problems = [_describe(model, problem, source) for problem in error.errors()]
        raise ParamsError("\n".join(problems)) from None


def _describe(model: Any, problem: Any, source: Path | str) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        owner = model
        for part in location[:-1]:
            owner = _field_model(owner, part)
        fields = getattr(owner, "model_fields", {})
        return f"{source}: {'.'.join(location)}: unknown key; {_nearest(location[-1], fields)}"
    given = f" (given: {problem['input']!r})" if location else ""
    return f"{source}: {'.'.join(location) or 'whole file'}: {problem['msg']}{given}"


def _field_model(owner: Any, part: str) -> Any:
    field = getattr(owner, "model_fields", {}).get(part)
    if field is None:
        return owner
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return owner


def read_config(
    folder: Path, name: str, variant: str | None = None, asked_by: str = ""
) -> dict[str, Any]:
    """Read ``folder/name.yaml`` with what it ``extends`` and, where it has it, a variant laid on.

    An algorithm without the variant asked for keeps its publication's values.
    """
    return _read_chain(folder, name, variant, asked_by, ())


def _read_chain(
    folder: Path, name: str, variant: str | None, asked_by: str, chain: tuple[str, ...]
) -> dict[str, Any]:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ParamsError(
            f"{asked_by or folder}: {name}: no file {path}; {_nearest(name, known_names(folder))}"
        )
    if name in chain:
        raise ParamsError(f"{path}: extends itself: {' -> '.join((*chain, name))}")
    data = read_yaml(path)
    variants = data.pop("variants", None) or {}
    parent = data.pop("extends", None)
    if not isinstance(variants, dict):
        raise ParamsError(f"{path}: variants: expected names and keys")
    if parent is not None:
        inherited = _read_chain(folder, str(parent), variant, f"{path}: extends", (*chain, name))
        data = merge(inherited, data)
    if variant is not None and variants.get(variant):
        data = merge(data, variants[variant])
    return data


def read_algorithm(root: Path, name: str, variant: str | None, asked_by: str) -> models.Algorithm:
    """Read an algorithm's YAML and check its hyperparameters against the algorithm's own file."""
    path = root / "params" / "algorithms" / f"{name}.yaml"
    config = validate(models.Algorithm, read_config(path.parent, name, variant, asked_by), path)
    source = root / "algorithms" / f"{config.algorithm}.py"
    if not source.is_file():
        known = [file.stem for file in registered_files(source.parent)]
        raise ParamsError(
            f"{path}: algorithm: {config.algorithm}: no {source}; "
            f"{_nearest(config.algorithm, known)}"
        )
    try:
        declared = declaration(source)
    except DeclarationError as error:
        raise ParamsError(str(error)) from error
    reads = f"{path}: {config.algorithm} reads {declared.inputs}"
    if declared.builds_on_backbone:
        if len(config.backbones) != 1 or not config.layers:
            raise ParamsError(f"{reads} and builds on a backbone: give one, and layers")
    elif declared.inputs == "features":
        if not config.backbones or not config.layers:
            raise ParamsError(f"{reads}: give backbone and layers")
    elif config.backbones or config.layers:
        raise ParamsError(f"{reads}: backbone and layers are unused")
    _check_needs(path, config, declared.needs)
    resolved = validate(declared.hyperparameters, config.parameters, f"{path}: parameters")
    return config.model_copy(update={"parameters": resolved.model_dump(mode="json")})


def _check_needs(path: Path, config: models.Algorithm, needs: tuple[str, ...]) -> None:
    """Check that a configuration names what its algorithm needs, and nothing that it does not."""
    for key in ("teacher", "base", "validation"):
        if key in needs and getattr(config, key) is None:
            raise ParamsError(f"{path}: {config.algorithm} needs the key {key}")
        if key not in needs and key in config.model_fields_set:
            raise ParamsError(f"{path}: {key}: {config.algorithm} does not use it")


def read_teacher(root: Path, name: str, variant: str | None, asked_by: str) -> models.Teacher:
    """Read a teacher's YAML and check its hyperparameters against its own file."""
    path = root / "params" / "teachers" / f"{name}.yaml"
    config = validate(models.Teacher, read_config(path.parent, name, variant, asked_by), path)
    source = root / "algorithms" / "teachers" / f"{config.teacher}.py"
    if not source.is_file():
        known = [file.stem for file in source.parent.glob("[!_]*.py")]
        raise ParamsError(
            f"{path}: teacher: {config.teacher}: no {source}; {_nearest(config.teacher, known)}"
        )
    try:
        declared = teacher_parameters(source)
    except DeclarationError as error:
        raise ParamsError(str(error)) from error
    if (config.backbone is None) != (not config.layers):
        raise ParamsError(f"{path}: give both backbone and layers, or neither")
    resolved = validate(declared, config.parameters, f"{path}: parameters")
    return config.model_copy(update={"parameters": resolved.model_dump(mode="json")})


def _read_bases(
    root: Path, algorithms: Mapping[str, models.Algorithm], variant: str | None
) -> dict[str, models.Algorithm]:
    """Read the configurations that others build upon."""
    bases: dict[str, models.Algorithm] = {}
    for name, algorithm in algorithms.items():
        if algorithm.base is None:
            continue
        path = f"params/algorithms/{name}.yaml: base"
        base = read_algorithm(root, algorithm.base, variant, path)
        if base.base is not None:
            raise ParamsError(f"{path}: {algorithm.base} builds upon {base.base} itself")
        folder = root / "algorithms"
        one, other = (declaration(folder / f"{each.algorithm}.py") for each in (algorithm, base))
        reads = [(each.backbones, each.layers) for each in (algorithm, base)]
        if one.inputs != other.inputs or reads[0] != reads[1]:
            raise ParamsError(f"{path}: {algorithm.base} does not read the same {one.inputs}")
        if {"validation"} & {*one.needs} & {*other.needs} and (
            algorithm.validation != base.validation
        ):
            raise ParamsError(
                f"{path}: {algorithm.base} holds out {base.validation} of the training images, "
                f"and {name} {algorithm.validation}: make validation the same"
            )
        bases[algorithm.base] = base
    return bases


def _read_pretraining(
    root: Path,
    benchmark: models.Benchmark,
    algorithms: Iterable[models.Algorithm],
    run: Mapping[str, tuple[Any, list[str]]],
) -> dict[str, tuple[models.AnyDataset, list[str]]]:
    """List the data sets whose training images are pretraining images, if any are wanted."""
    needs = {
        need
        for one in algorithms
        for need in declaration(root / "algorithms" / f"{one.algorithm}.py").needs
    }
    if benchmark.pretraining_images is not None or not needs & {"teacher", "outside"}:
        return {}
    if "demo" in run:
        return {**run, "demo": (run["demo"][0], list(run["demo"][0].categories))}
    demo = read_dataset(root, "demo", None)
    return {**run, "demo": (demo, _categories(root, "demo", demo, "all"))}


def read_metric(
    root: Path, name: str, given: Mapping[str, Any], configured: Iterable[str]
) -> models.Metric:
    """Resolve a metric and check its parameters against the metric's own file.

    Parameters
    ----------
    root
        The repository's folder.
    name
        What the run calls the metric.
    given
        What ``metrics.yaml`` says about it.
    configured
        All names that ``metrics.yaml`` gives.

    Raises
    ------
    ParamsError
        If there is no such metric, or a parameter is unknown or has a value that it refuses.
    """
    path = root / "params" / "metrics.yaml"
    catalogue = root / "metrics" / "visionad_metrics" / "catalogue"
    known = sorted(file.stem for file in catalogue.glob("[!_]*.py"))
    metric = given.get("metric", name)
    if metric not in known:
        if "metric" in given:
            where = f"{path}: parameters.{name}.metric"
        else:
            where, known = "metrics", sorted({*known, *configured})
        raise ParamsError(f"{where}: {metric} is unknown; {_nearest(str(metric), known)}")
    where = f"{path}: parameters.{name}"
    values = {key: value for key, value in given.items() if key != "metric"}
    try:
        declared = metric_parameters(catalogue / f"{metric}.py")
    except DeclarationError as error:
        raise ParamsError(str(error)) from error
    resolved = validate(declared, values, where).model_dump(mode="json")
    if resolved != declared().model_dump(mode="json"):
        _try_metric(metric, resolved, where)
    return models.Metric(metric=metric, parameters=resolved)


def _try_metric(metric: str, parameters: Mapping[str, Any], where: str) -> None:
    """Compute a metric on two tiny images: it alone knows which values it takes."""
    import visionad_metrics

    maps = [[[0.0, 1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0, 7.0]]]
    masks = [[[0, 0, 0, 0]], [[0, 0, 1, 1]]]
    try:
        visionad_metrics.compute(metric, maps, masks, [3.0, 7.0], [0, 1], **parameters)
    except (TypeError, ValueError, ImportError) as error:
        raise ParamsError(f"{where}: {error}") from error
    except LookupError:
        pass  # a new metric in a copy of the repository, which is not installed here


def read_benchmark(root: Path, overrides: Mapping[str, Any]) -> models.Benchmark:
    """Lay the preset and then ``overrides`` over ``params/benchmark.yaml``."""
    path = root / "params" / "benchmark.yaml"
    data = read_yaml(path)
    preset = overrides.get("preset", data.get("preset"))
    sources = [str(path)]
    if preset is not None:
        folder = root / "params" / "presets"
        data = merge(data, read_config(folder, str(preset), asked_by=f"{path}: preset"))
        sources.append(str(folder / f"{preset}.yaml"))
    if overrides:
        data = merge(data, overrides)
        sources.append("--config")
    data.pop("preset", None)
    benchmark = validate(models.Benchmark, data, " + ".join(sources))
    _check_logger(benchmark.logger.kind)
    return benchmark


def _check_logger(kind: str) -> None:
    """Check that the package of a tracker is installed, without importing it."""
    for distribution in (names := TRACKERS.get(kind, ())):
        try:
            importlib.metadata.version(distribution)
            return
        except importlib.metadata.PackageNotFoundError:
            continue
    if names:
        raise ParamsError(
            f"logger: {kind}: the package {names[0]} is not installed; "
            f"pip install --constraint constraints.txt --editable '.[{kind}]', or logger: none"
        )


def read_dataset(root: Path, name: str, new_root: str | None) -> models.AnyDataset:
    """Read a data set's YAML; ``new_root`` is the run's own place for it."""
    path = root / "params" / "datasets" / f"{name}.yaml"
    data = read_config(path.parent, name, asked_by="datasets")
    if new_root is not None:
        data["root"] = new_root
    kinds: dict[str, type[models.AnyDataset]] = {
        "demo": models.Demo,
        "mvtec": models.Mvtec,
        "loco": models.Loco,
        "visa": models.Visa,
    }
    if data.get("kind") not in kinds:
        raise ParamsError(
            f"{path}: kind: expected one of {', '.join(kinds)}, given: {data.get('kind')!r}"
        )
    dataset = validate(kinds[data["kind"]], data, path)
    if isinstance(dataset, models.Demo) and dataset.root != f"data/{name}":
        raise ParamsError(
            f"{path}: root: a demo data set is drawn in data/{name}, given: {dataset.root!r}"
        )
    return dataset


def _categories(
    root: Path, name: str, dataset: models.AnyDataset, asked: list[str] | str
) -> list[str]:
    place = root / dataset.root
    known = dataset.categories
    pointer = place.with_name(f"{place.name}.dvc")
    if not place.is_dir() and (known is None or pointer.is_file()):
        remedy = f"; {pointer.name} is there: run dvc pull" if pointer.is_file() else ""
        raise ParamsError(f"datasets.{name}: root {place} is not a folder{remedy}")
    if known is None:
        known = sorted(
            path.name for path in place.iterdir() if path.is_dir() and path.name[0] != "."
        )
        if not known:
            raise ParamsError(f"datasets.{name}: root {place} holds no category folder")
        checker = TypeAdapter(models.Name)
        for category in known:
            try:
                checker.validate_python(category)
            except ValidationError:
                raise ParamsError(
                    f"datasets.{name}: folder {place / category}: rename it: a category name has "
                    "only letters, digits, '_', '-' and '.', and starts with a letter or digit"
                ) from None
    if asked == "all":
        return list(known)
    for category in asked:
        if category not in known:
            raise ParamsError(
                f"datasets.{name}: no category {category}; {_nearest(category, known)}"
            )
    return list(asked)


def _read_backbone(root: Path, name: str, layers: list[str], asked_by: str) -> models.Backbone:
    """Read a backbone's YAML and check that it has the layers asked for."""
    folder = root / "params" / "backbones"
    data = read_config(folder, name, asked_by=f"{asked_by}: backbone")
    backbone = validate(models.Backbone, data, folder / f"{name}.yaml")
    for layer in layers:
        if layer not in backbone.layers:
            raise ParamsError(
                f"{asked_by}: layers: {layer} is not a layer of {name}; "
                f"{_nearest(layer, backbone.layers)}"
            )
    return backbone


def read_run(root: Path, overrides: Mapping[str, Any] | None = None) -> Run:
    """Read and validate everything a run needs, before anything is computed.

    Parameters
    ----------
    root
        The repository's folder.
    overrides
        Keys of ``benchmark.yaml`` given on the command line, e.g. ``{"preset": "cpu_real"}``.

    Raises
    ------
    ParamsError
        With all problems of the file at fault: file, key, value, what is allowed.
    """
    benchmark = read_benchmark(root, overrides or {})
    for name in benchmark.roots:
        read_config(root / "params" / "datasets", name, asked_by="roots")
    datasets = {
        name: read_dataset(root, name, benchmark.roots.get(name)) for name in benchmark.datasets
    }
    categories = {
        name: _categories(root, name, datasets[name], asked)
        for name, asked in benchmark.datasets.items()
    }
    algorithms = {
        name: read_algorithm(root, name, benchmark.variant, "algorithms")
        for name in benchmark.algorithms
    }
    bases = _read_bases(root, algorithms, benchmark.variant)
    teachers = {
        teacher: read_teacher(
            root, teacher, benchmark.variant, f"params/algorithms/{name}.yaml: teacher"
        )
        for name, algorithm in {**algorithms, **bases}.items()
        for teacher in algorithm.teachers
    }
    backbones: dict[str, models.Backbone] = {}
    for name, algorithm in {**algorithms, **bases}.items():
        place = f"params/algorithms/{name}.yaml"
        for used in algorithm.backbones:
            backbones[used] = _read_backbone(root, used, algorithm.layers, place)
        sizes = {used: backbones[used].image_size for used in algorithm.backbones}
        if len(set(sizes.values())) > 1:
            raise ParamsError(f"{place}: backbone: all must see images of one size: {sizes}")
    for name, model in teachers.items():
        if model.backbone is not None:
            backbones[model.backbone] = _read_backbone(
                root, model.backbone, model.layers, f"params/teachers/{name}.yaml"
            )
    metrics_path = root / "params" / "metrics.yaml"
    metrics = validate(models.Metrics, read_yaml(metrics_path), metrics_path)
    measured = {
        name: read_metric(root, name, metrics.parameters.get(name, {}), metrics.parameters)
        for name in benchmark.metrics
    }
    figures_path = root / "params" / "figures.yaml"
    figures = validate(models.Figures, read_yaml(figures_path), figures_path)
    comparison_path = root / "params" / "comparison.yaml"
    comparison = validate(models.Comparison, read_yaml(comparison_path), comparison_path)
    report_path = root / "params" / "report.yaml"
    report = validate(models.Report, read_yaml(report_path), report_path)
    return Run(
        benchmark=benchmark,
        algorithms=algorithms,
        backbones=backbones,
        datasets=datasets,
        categories=categories,
        metrics=measured,
        by_defect_type=metrics.by_defect_type,
        figures=figures,
        comparison=comparison,
        report=report,
        bases=bases,
        teachers=teachers,
        pretraining=_read_pretraining(
            root,
            benchmark,
            [*algorithms.values(), *bases.values()],
            {name: (datasets[name], categories[name]) for name in datasets},
        ),
    )
