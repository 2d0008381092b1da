"""The oracles of ``../shared/metric_cases``, one test per case where they are at hand."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ORACLES = Path(__file__).resolve().parents[3] / "shared" / "metric_cases"


@dataclass(frozen=True)
class OracleCase:
    """One case: its arrays, and what each implementation returned for it."""

    maps: NDArray[Any]
    masks: NDArray[Any]
    scores: NDArray[Any]
    labels: NDArray[Any]
    reference: dict[str, Any]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``oracle_case`` once per case, or skip it with the reason."""
    if "oracle_case" not in metafunc.fixturenames:
        return
    if not ORACLES.is_dir():
        skip = pytest.mark.skip(reason=f"no oracle: {ORACLES} is absent")
        metafunc.parametrize("oracle_case", [pytest.param(None, marks=skip)], indirect=True)
        return
    names = json.loads((ORACLES / "reference.json").read_text())["cases"]
    metafunc.parametrize("oracle_case", sorted(names), indirect=True)


@pytest.fixture
def oracle_case(request: pytest.FixtureRequest) -> OracleCase:
    """Load the case; the image score is the map's maximum unless the case has its own."""
    name = request.param
    reference = json.loads((ORACLES / "reference.json").read_text())["cases"][name]
    with np.load(ORACLES / "cases.npz") as arrays:
        maps, masks = arrays[f"{name}__maps"], arrays[f"{name}__masks"]
        own = f"{name}__scores"
        scores = arrays[own] if own in arrays else maps.max(axis=(1, 2))
    return OracleCase(maps, masks, scores, masks.any(axis=(1, 2)), reference)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
