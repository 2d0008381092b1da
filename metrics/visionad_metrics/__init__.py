"""Metrics for visual anomaly detection: arrays in, a number and its curve out.

Each metric of the catalogue is an attribute here too, imported on first use:
``from visionad_metrics import pixel_auroc``.
"""

from collections.abc import Callable
from importlib import import_module

from visionad_metrics.registry import catalogue_names, compute, level, names, register
from visionad_metrics.result import MetricResult

__all__ = ["MetricResult", "compute", "level", "names", "register"]


def __getattr__(name: str) -> Callable[..., MetricResult]:
    """Find the function ``name`` in the catalogue file of that name (PEP 562)."""
    if name not in catalogue_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.catalogue.{name}")
    function: Callable[..., MetricResult] = getattr(module, name)
    return function


def __dir__() -> list[str]:
    return sorted({*globals(), *catalogue_names()})
