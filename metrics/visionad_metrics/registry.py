"""Metrics by name, each imported only when it is asked for.

A metric's contract is a function ``(samples, **parameters) -> MetricResult`` that uses of the
samples what its level says.
"""

import difflib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from numpy.typing import ArrayLike

from visionad_metrics import catalogue
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples

Contract = Callable[..., MetricResult]
Level = Literal["image", "pixel"]


@dataclass(frozen=True)
class _Metric:
    contract: Contract
    level: Level


_registered: dict[str, _Metric] = {}


def register(name: str, *, level: Level) -> Callable[[Contract], Contract]:
    """Register the decorated contract under ``name``.

    Parameters
    ----------
    name : what the metric is asked for by
    level : "image" if it reads scores and labels, "pixel" if it reads maps and masks

    Raises
    ------
    ValueError
        If the name is taken, also by a file of the catalogue, or the level is neither.
    """
    if level not in get_args(Level):
        raise ValueError(f"level of metric {name!r} must be 'image' or 'pixel', got {level!r}")

    def decorate(contract: Contract) -> Contract:
        reserved = name in catalogue_names() and contract.__module__ != _module(name)
        if name in _registered or reserved:
            raise ValueError(f"a metric named {name!r} exists already")
        _registered[name] = _Metric(contract, level)
        return contract

    return decorate


def names() -> list[str]:
    """Return the names of all metrics, sorted; imports none of them."""
    return sorted({*catalogue_names(), *_registered})


def catalogue_names() -> list[str]:
    """Return the names of the metrics that have a file in the catalogue, sorted."""
    files = (module.name for module in pkgutil.iter_modules(catalogue.__path__))
    return sorted(name for name in files if not name.startswith("_"))


def level(name: str) -> Level:
    """Return "image" or "pixel": whether ``name`` reads scores and labels or maps and masks.

    Raises
    ------
    LookupError
        If no metric has that name.
    """
    return _metric(name).level


def compute(
    name: str,
    maps: ArrayLike | None,
    masks: ArrayLike | None,
    scores: ArrayLike | None,
    labels: ArrayLike | None,
    **parameters: Any,
) -> MetricResult:
    """Compute the metric ``name``.

    Parameters
    ----------
    maps, masks : (N, H, W) real numbers and bool or 0/1; None will do at level "image"
    scores, labels : (N,) real numbers and bool or 0/1; None will do at level "pixel"
    parameters : the metric's own

    Raises
    ------
    LookupError
        If no metric has that name.
    TypeError, ValueError
        If the metric has no such parameter, or an array is not as described.
    """
    return compute_on(Samples(maps, masks, scores, labels), name, parameters)


def compute_on(samples: Samples, name: str, parameters: Mapping[str, Any]) -> MetricResult:
    """Compute the metric ``name`` on samples that other metrics may have sorted already.

    Raises what :func:`compute` raises.
    """
    contract = _metric(name).contract
    try:
        inspect.signature(contract).bind(samples, **parameters)
    except TypeError as error:
        raise TypeError(f"metric {name!r} {error}") from None
    return contract(samples, **parameters)


def _metric(name: str) -> _Metric:
    if name not in _registered and name in catalogue_names():
        import_module(_module(name))
    if name not in _registered:
        known = names()
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise LookupError(
            f"no metric is named {name!r}; did you mean {' '.join(nearest)!r}? "
            f"Known: {', '.join(known)}"
        )
    return _registered[name]


def _module(name: str) -> str:
    return f"{catalogue.__name__}.{name}"
