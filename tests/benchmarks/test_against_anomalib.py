"""``benchmarks/against_anomalib.py``: what it times and prints; and that it runs, if it can."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(path: Path):
    """Import a script by its path: ``benchmarks`` is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[path.stem]
    return module


against = load(BENCHMARKS / "against_anomalib.py")
measuring = load(BENCHMARKS / "peers" / "measuring.py")


class Method(measuring.Method):
    """A method that takes known times on a clock of its own, and knows its backbone's."""

    def __init__(self):
        self.now, self.backbone, self.trained, self.is_ready = 0.0, 0.0, [], False

    def perf_counter(self):
        return self.now

    def features(self, images):
        return [images]

    def fit(self, batches):
        self.train(batches)
        self.ready()

    def train(self, batches):
        for batch in batches:
            self.now += 3.0
            self.backbone += 2.0
            self.trained.append(len(batch))
        return len(batches)

    def backbone_seconds(self):
        return self.backbone

    def ready(self):
        self.is_ready = True

    def predict(self, images):
        assert self.is_ready
        self.now += 0.5 + 0.25 * len(images)
        return images[:, 0]


@pytest.mark.parametrize(
    ("steps", "trained", "fit", "cached"),
    [(0, [4, 4, 2], 9.0, 3.0), (3, [4, 4, 4, 4], 3.0, 1.0)],
    ids=["fit", "a step; the first is not timed"],
)
def test_fit_and_predict_are_timed_by_pass_step_and_image(monkeypatch, steps, trained, fit, cached):
    method = Method()
    monkeypatch.setattr(measuring, "time", method)
    result = measuring.measure(
        method, torch.zeros(10, 3, 8, 8), {"batch": 4, "steps": steps, "imports": 0.1}
    )
    assert method.trained == trained
    assert (result["fit"], result["cached"]) == (fit, cached)
    assert (result["1"], result["8"]) == (750.0, 312.5)  # ms per image
    assert 0.01 < result["peak"] < 100  # GB


def test_a_process_without_enough_memory_says_so(tmp_path):
    torch.save(torch.zeros(1), tmp_path / "images.pt")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import measuring, torch\n"
        "job = {'limit': 1.5, 'threads': 1, 'algorithm': 'padim', 'images': sys.argv[2]}\n"
        "make = lambda job, images: torch.ones(2**30)\n"  # 4 GB
        "print(measuring.answer(make, None, job)['skipped'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(BENCHMARKS / "peers"), str(tmp_path / "images.pt")],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "out of memory, limit 1.5 GB", done.stderr


def figures(ours, theirs, **skipped):
    case = against.Case("padim", "padim", "resnet18", (1, 2, 3), {}, {})
    return against.Figures(case, 2, {"ours": ours, "anomalib": theirs}, skipped)


def test_the_table_has_the_least_of_the_rounds_and_their_ratio():
    ours = [
        {"fit": 2.0, "cached": 0.5, "1": 30, "8": 20, "peak": 1.0},
        {"fit": 1.0, "cached": 0.7, "1": 40, "8": 10, "peak": 1.2},
    ]
    theirs = [{"fit": 8.0, "1": 60, "8": 40, "peak": 2.0}, {"fit": 3.5, "1": 90, "8": 5, "peak": 3}]
    last = against.summary([figures(ours, theirs)]).splitlines()[-1]
    assert last == (
        "| padim | resnet18 | 2 | 1.00 / 3.50 | 3.5 | 30 / 60 | 2.0 | 10 / 5 | 0.5 "
        "| 1.00 / 2.00 | 2.0 | 0.50 |"
    )
    assert "| fit or step, s | 1.00 | 2.00 | 3.50 | 8.00 |" in against.details(
        [figures(ours, theirs)]
    )


def test_what_ran_out_of_memory_has_no_ratio():
    measured = figures(
        [{"fit": 1.0, "1": 30, "8": 20, "peak": 1.0}],
        [{"skipped": "out of memory", "peak": 17.9}],
        anomalib="out of memory",
    )
    last = against.summary([measured]).splitlines()[-1]
    assert "| 1.00 / - |  |" in last and "| 1.00 / over 17.90 |  |" in last
    assert "padim, resnet18, 2 thread(s), anomalib: out of memory" in against.remarks([measured])


def test_an_algorithm_that_we_lack_is_left_out_with_a_line(monkeypatch, tmp_path):
    bench = against.Bench(argparse.Namespace(rounds=2), tmp_path / "python", tmp_path)
    asked = []

    def run(case, threads, side):
        asked.append(side)
        return {"skipped": "algorithm padim is not registered"}

    monkeypatch.setattr(bench, "run", run)
    measured = bench.measure(figures([], []).case, threads=1)
    assert asked == ["ours"]
    assert "left out: padim, resnet18, 1 thread(s), ours: algorithm padim is not registered" in (
        against.remarks([measured])
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not against.is_made(against.ENVIRONMENT),
    reason="anomalib's environment is absent (benchmarks/against_anomalib.py makes it: 6 GB)",
)
def test_it_measures_both_sides(tmp_path):
    table = tmp_path / "table.md"
    subprocess.run(
        [sys.executable, str(BENCHMARKS / "against_anomalib.py"), "--only", "patchcore,coreset",
         "--images", "2", "--size", "64", "--rows", "300", "--rounds", "1", "--threads", "1",
         "--output", str(table)],
        check=True,
    )  # fmt: skip
    text = table.read_text(encoding="utf-8")
    assert "left out" not in text
    rows = {line.split(" |")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert {"| patchcore", "| coreset"} <= set(rows)
    # Of both sides, with and without projection.
    assert text.count("covering radius of") == 4
