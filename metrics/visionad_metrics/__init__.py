"""Metrics for visual anomaly detection: arrays in, a number and its curve out.

Each metric of the catalogue is an attribute here too, imported on first use:
``from visionad_metrics import pixel_auroc``.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from numpy.typing import ArrayLike

from visionad_metrics.registry import (
    catalogue_names,
    compute,
    compute_on,
    level,
    names,
    register,
)
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples

__all__ = [
    "MetricResult",
    "Samples",
    "compute",
    "compute_on",
    "level",
    "names",
    "pixel_metrics",
    "register",
]


def pixel_metrics(
    maps: ArrayLike, masks: ArrayLike, names: Sequence[str] | Mapping[str, Mapping[str, Any]]
) -> dict[str, MetricResult]:
    """Compute several pixel metrics from one sort.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous; an array or a data set on disk
    masks : (N, H, W) bool or 0/1; 1 is anomalous
    names : names of metrics, or labels of your own with parameters, of which ``metric`` names the
        function if the label does not: ``{"aupro_005": {"metric": "aupro", "limit": 0.05}}``

    Raises
    ------
    LookupError, TypeError, ValueError
        If a name, a parameter or an array is not as described.
    """
    settings = names if isinstance(names, Mapping) else {name: {} for name in names}
    samples = Samples(maps, masks)
    return {
        label: compute_on(
            samples,
            parameters.get("metric", label),
            {key: value for key, value in parameters.items() if key != "metric"},
        )
        for label, parameters in settings.items()
    }


def __getattr__(name: str) -> Callable[..., MetricResult]:
    """Find the function ``name`` in the catalogue file of that name (PEP 562)."""
    if name not in catalogue_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.catalogue.{name}")
    function: Callable[..., MetricResult] = getattr(module, name)
    return function


def __dir__() -> list[str]:
    return sorted({*globals(), *catalogue_names()})
