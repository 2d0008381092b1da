"""A small copy of the repository with a tiny benchmark, for tests that plan or run one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from stages.artifacts.job import read_job
from stages.command import Options, execute
from workflow.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("stages", "algorithms", "metrics", "params", "workflow", "profiles", "Snakefile",
         "pyproject.toml", "constraints.txt", "dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config",
         ".dvc/.gitignore", "data/.gitignore", "results/.gitignore")  # fmt: skip
SIZE = 64
PRESET = {
    "title": "Tiny",
    "datasets": {"folder": "all"},
    "roots": {"folder": "data/parts"},
    "variant": "tiny",
    "protocol": {"image_size": SIZE, "evaluation_size": SIZE},
    "checks": {"min_train_images": 5},
    "device": "cpu",
    "page": None,
    "pipeline": {"record": False, "store_gb": 0},
}
ALGORITHMS = ["random", "padim"]
BACKBONE = {
    "model": "resnet18",
    "weights": {"source": "random"},
    "layers": {"stride4": 1, "stride8": 2},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
PADIM = {
    "algorithm": "padim",
    "backbone": "tiny",
    "layers": ["stride4", "stride8"],
    "batch_size": 8,
    "parameters": {"max_features": 20},
}


@dataclass(frozen=True)
class Repository:
    """A copy of the repository, with a preset called tiny."""

    root: Path

    @property
    def images(self) -> Path:
        """Root of the data set."""
        return self.root / "data" / "parts"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment of a process whose imports come from the copy."""
        path = os.pathsep.join([str(self.root), str(self.root / "metrics")])
        own = {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": path,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return {**os.environ, **own, **(extra or {})}

    def python(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python in the copy."""
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )

    def git(self, *words: str) -> str:
        """Run Git in the copy, and return what it says."""
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        done = subprocess.run(
            ["git", *who, *words], cwd=self.root, check=True, capture_output=True, text=True
        )
        return done.stdout

    def dvc(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run DVC in the copy."""
        return self.python("-m", "dvc", *words)

    def version(self) -> None:
        """Put the copy under version control, images by DVC; keep and record results."""
        self.edit("presets/tiny.yaml", pipeline={"record": True, "store_gb": 1})
        self.git("init", "--quiet", "--initial-branch", "main")
        for key in ("name", "email"):  # DVC commits, too
            self.git("config", f"user.{key}", "test@example.org")
        done = self.dvc("add", "--quiet", "data/parts")
        assert done.returncode == 0, done.stderr
        self.commit("start")

    def commit(self, message: str) -> None:
        """Commit all changes."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def stage(self, job: str) -> subprocess.CompletedProcess[str]:
        """Run the stage of a job, e.g. ``index/folder/bolt``."""
        name = job.split("/")[0]
        return self.python("-m", f"stages.{name}", f".plan/{job}.json", "--threads", "1")

    def snakemake(
        self, *words: str, config: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on the preset tiny."""
        return self.python(
            "-m", "snakemake", "--cores", "1", *words, "--config", "preset=tiny", *config
        )

    def plan(self, **overrides: Any) -> Plan:
        """Plan the preset tiny."""
        return Plan(self.root, {"preset": "tiny", **overrides})

    def write_plan(self, **overrides: Any) -> Plan:
        """Plan, and write the job files."""
        plan = self.plan(**overrides)
        plan.write()
        return plan

    def read(self, path: str) -> Any:
        """Read a YAML file of ``params/``."""
        return yaml.safe_load((self.root / "params" / path).read_text(encoding="utf-8"))

    def write(self, path: str, data: Any) -> None:
        """Write a YAML file of ``params/``."""
        text = data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False)
        (self.root / "params" / path).write_text(text, encoding="utf-8")

    def edit(self, path: str, **changes: Any) -> None:
        """Change keys of a YAML file of ``params/``; None values stay, mappings are merged."""
        data = self.read(path)
        for key, value in changes.items():
            both = isinstance(value, dict) and isinstance(data.get(key), dict)
            data[key] = {**data[key], **value} if both else value
        self.write(path, data)

    def replace(self, path: str, old: str, new: str) -> None:
        """Replace a text that stands once in a file."""
        file = self.root / path
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
        file.write_text(text.replace(old, new), encoding="utf-8")


def do(*jobs: str) -> None:
    """Run the stages of planned jobs in this process, which works in the copy's folder."""
    for name in jobs:
        stage = name.split("/")[0]
        job = read_job(Path(f".plan/{name}.json"), stage)
        execute(job, Options(1, "cpu", False), import_module(f"stages.{stage}").body)


def draw_category(
    folder: Path,
    seed: int,
    train: int = 12,
    good: int = 4,
    defects: Iterable[str] = ("spot", "scratch"),
    each: int = 4,
) -> None:
    """Draw a category in MVTec's layout: noise on a gradient, defects brighter or darker."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(60, 160, SIZE)[:, None, None]

    def save(name: str, box: tuple[slice, slice] | None = None, change: int = 0) -> None:
        pixels = np.broadcast_to(slope, (SIZE, SIZE, 3)) + rng.normal(0, 8, (SIZE, SIZE, 3))
        if box is not None:
            pixels[box] += change
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)

    for number in range(train):
        save(f"train/good/{number:03}.png")
    for number in range(good):
        save(f"test/good/{number:03}.png")
    for kind in defects:
        shape = (12, 12) if kind == "spot" else (4, 40)
        for number in range(each):
            top, left = (int(rng.integers(0, SIZE - side)) for side in shape)
            box = (slice(top, top + shape[0]), slice(left, left + shape[1]))
            save(f"test/{kind}/{number:03}.png", box, 70 if kind == "spot" else -60)
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[box] = 255
            path = folder / "ground_truth" / kind / f"{number:03}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


def recolour(path: Path) -> None:
    """Change an image, or a mask at its rim, so that it stays usable."""
    pixels = np.asarray(Image.open(path)).copy()
    pixels[:2] = 255 - pixels[:2]
    path.unlink()
    Image.fromarray(pixels).save(path)


def make_repository(root: Path, categories: Iterable[str] = ("bolt", "nut")) -> Repository:
    """Copy the repository to ``root`` and give it images and the preset tiny."""
    for part in PARTS:
        source, target = ROOT / part, root / part
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
            shutil.copytree(source, target, ignore=ignore)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    repository = Repository(root)
    repository.write("presets/tiny.yaml", PRESET)
    repository.edit("benchmark.yaml", preset="tiny", algorithms=ALGORITHMS)
    repository.edit("figures.yaml", formats=["svg", "png"])  # a PDF's fonts take a second
    repository.write("backbones/tiny.yaml", BACKBONE)
    repository.write("algorithms/padim.yaml", PADIM)
    for number, category in enumerate(categories):
        draw_category(repository.images / category, seed=number)
    return repository
