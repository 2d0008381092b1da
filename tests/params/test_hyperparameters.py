"""What an algorithm's file declares is read without importing it, and is what it really is."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from params.hyperparameters import DeclarationError, declaration

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
        ("count: int = 3", "count: int", "count needs a default"),
        ("count: int = 3", "count: int = len('abc')", "hyperparameter count"),
        ("count: int = 3", "count: Path = 3", "hyperparameter count"),
        ("count: int = 3", "count: exit = 3", "hyperparameter count"),
    ],
)
def test_broken_declarations(tmp_path, old, new, message):
    assert SOURCE.count(old) == 1
    with pytest.raises(DeclarationError, match=message) as caught:
        declare(tmp_path, SOURCE.replace(old, new))
    assert str(tmp_path / "mine.py") in str(caught.value)
