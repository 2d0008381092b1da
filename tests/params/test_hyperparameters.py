"""What an algorithm's file declares is read without importing it, and is what it really is."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from pydantic import ValidationError

import visionad_metrics
from params.hyperparameters import DeclarationError, declaration, metric_parameters

ROOT = Path(__file__).resolve().parents[2]
ALGORITHMS = sorted(
    path.stem for path in (ROOT / "algorithms").glob("*.py") if "@register(" in path.read_text()
)
SOURCE = '''
"""An algorithm."""
from dataclasses import dataclass
from typing import Literal
import a_module_that_is_not_there

@dataclass(frozen=True)
class Hyperparameters:
    """Docstring."""
    count: int = 3  # comment
    rate: float | None = None
    sizes: tuple[int, ...] = (1, -2)
    mode: Literal["fast", "exact"] = "fast"

@register("mine")
class Mine(Algorithm):
    inputs = "features"
'''


def declare(folder: Path, source: str = SOURCE, name: str = "mine"):
    path = folder / f"{name}.py"
    path.write_text(source)
    return declaration(path)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_agrees_with_the_imported_algorithm(name):
    declared = declaration(ROOT / "algorithms" / f"{name}.py")
    module = importlib.import_module(f"algorithms.{name}")
    from algorithms import base

    assert declared.inputs == base._REGISTRY[name].inputs
    real = {
        field.name: field.default if field.default is not MISSING else None
        for field in fields(module.Hyperparameters)
    }
    assert declared.hyperparameters().model_dump() == real
    resolved = declared.hyperparameters.model_validate({}).model_dump(mode="json")
    assert module.Hyperparameters(**resolved) is not None


def test_planning_imports_no_algorithm():
    code = (
        "import sys; from pathlib import Path; from params.hyperparameters import declaration;"
        "[declaration(p) for p in Path('algorithms').glob('*.py') if '@register(' in p.read_text()];"
        "print(sorted({'torch', 'algorithms'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


class TestDeclaration:
    """The dataclass ``Hyperparameters`` becomes a model that accepts its fields and no others."""

    def test_defaults(self, tmp_path):
        model = declare(tmp_path).hyperparameters
        assert model().model_dump() == {
            "count": 3,
            "rate": None,
            "sizes": (1, -2),
            "mode": "fast",
        }

    def test_values(self, tmp_path):
        model = declare(tmp_path).hyperparameters
        assert model.model_validate({"rate": 2, "sizes": [5]}).model_dump()["sizes"] == (5,)

    @pytest.mark.parametrize(
        "wrong", [{"count": "x"}, {"count": 1.5}, {"mode": "slow"}, {"cuont": 3}, {"sizes": 1}]
    )
    def test_refused_values(self, tmp_path, wrong):
        with pytest.raises(ValidationError):
            declare(tmp_path).hyperparameters.model_validate(wrong)

    def test_without_hyperparameters(self, tmp_path):
        source = '@register("mine")\nclass Mine(Algorithm):\n    inputs: str = "images"\n'
        declared = declare(tmp_path, source)
        assert declared.inputs == "images"
        assert declared.hyperparameters().model_dump() == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('@register("mine")', '@register("other")', r'one class under @register\("mine"\)'),
        ('@register("mine")\n', "", r'one class under @register\("mine"\)'),
        ('inputs = "features"', 'inputs = "pixels"', 'must be "features" or "images"'),
        ('inputs = "features"', "shuffle = False", 'must be "features" or "images"'),
        ("count: int = 3", "count: int", "count needs a type and a default"),
        ("count: int = 3", "count: int = len('abc')", "parameter count"),
        ("count: int = 3", "count: Path = 3", "parameter count"),
        ("count: int = 3", "count: exit = 3", "parameter count"),
    ],
)
def test_broken_declarations(tmp_path, old, new, message):
    assert SOURCE.count(old) == 1
    with pytest.raises(DeclarationError, match=message) as caught:
        declare(tmp_path, SOURCE.replace(old, new))
    assert str(tmp_path / "mine.py") in str(caught.value)


METRIC = """
@register("mine", level="pixel")
def contract(samples: Samples, limit: float = 0.3, mode: Literal["a", "b"] = "a",
             *, top: int | None = None):
    pass
"""


class TestMetricParameters:
    """What follows the samples in a metric's registered function are its parameters."""

    @staticmethod
    def declare(folder, source=METRIC):
        file = folder / "mine.py"
        file.write_text(source)
        metric_parameters.cache_clear()
        return metric_parameters(file)

    def test_defaults_and_types(self, tmp_path):
        model = self.declare(tmp_path)
        assert model().model_dump() == {"limit": 0.3, "mode": "a", "top": None}
        for wrong in ({"limit": "x"}, {"mode": "c"}, {"samples": 1}, {"top": 0.5}):
            with pytest.raises(ValidationError):
                model.model_validate(wrong)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"mine"', '"other"', r'one function under @register\("mine"\)'),
            ("limit: float = 0.3", "limit: float", "limit needs a type and a default"),
            ("limit: float = 0.3", "limit=0.3", "limit needs a type and a default"),
            ("limit: float = 0.3", "limit: Path = 0.3", "parameter limit"),
        ],
    )
    def test_broken(self, tmp_path, old, new, message):
        with pytest.raises(DeclarationError, match=message):
            self.declare(tmp_path, METRIC.replace(old, new))

    @pytest.mark.parametrize("name", visionad_metrics.registry.catalogue_names())
    def test_agrees_with_the_imported_metric(self, name):
        file = ROOT / f"metrics/visionad_metrics/catalogue/{name}.py"
        visionad_metrics.level(name)
        contract = visionad_metrics.registry._registered[name].contract
        signature = list(inspect.signature(contract).parameters.values())[1:]
        expected = {parameter.name: parameter.default for parameter in signature}
        assert metric_parameters(file)().model_dump() == expected
