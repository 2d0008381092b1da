"""Time fitting and predicting, and weigh their memory, against anomalib on the same images.

    python benchmarks/against_anomalib.py --output table.md
    python benchmarks/against_anomalib.py --quick --only padim,patchcore

Both sides use the same backbone with the same random weights. Each measurement is a new process.
Sides take turns, round after round; of each figure the least is reported. anomalib lives in an
environment of its own, made by the first run (6 GB; PyPI must be reachable).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv"
PINS = ("anomalib==2.7.0", "torch==2.14.1", "torchvision==0.29.1")
COLUMNS = 384  # of the coreset's rows: ResNet-18's layers 2 and 3
PEAK = 3.0  # GB, target of PaDiM with 550 features
TIMEOUT = 3600  # seconds

Result = dict[str, Any]
OURS, THEIRS = "ours", "anomalib"


@dataclass(frozen=True)
class Case:
    """An algorithm on a backbone, with equal settings for both sides."""

    name: str  # as in `--only`
    algorithm: str  # of our registry
    backbone: str
    layers: tuple[int, ...]
    ours: dict[str, Any]  # hyperparameters that are not ours by default
    theirs: dict[str, Any]
    steps: bool = False  # trained by gradients: a step is timed
    heavy: bool = False  # one step is enough


RESNET, WIDE = "resnet18", "wide_resnet50_2"
CFA = {
    "gamma_c": 1,
    "gamma_d": 1,
    "num_nearest_neighbors": 3,
    "num_hard_negative_features": 3,
    "radius": 1e-5,
}
CFLOW = (
    {"permute_soft": False, "fibre_batch": 256},  # anomalib's default, and ours
    {"permute_soft": False, "fiber_batch_size": 256},
)
CASES = [
    Case(
        "patchcore",
        "patchcore",
        RESNET,
        (2, 3),
        # anomalib's embedding is the mean over each patch; its score is the paper's.
        {"pretrain_dimension": None, "target_dimension": None, "reweight_neighbours": 9},
        {"num_neighbors": 9},
    ),
    Case("padim", "padim", RESNET, (1, 2, 3), {"max_features": 100}, {"n_features": 100}),
    Case("padim", "padim", WIDE, (1, 2, 3), {"max_features": 550}, {"n_features": 550}),
    Case("cfa", "cfa", RESNET, (1, 2, 3), {}, CFA, steps=True),
    Case("cflow", "cflow", RESNET, (2, 3, 4), *CFLOW, steps=True),
    Case("cflow", "cflow", WIDE, (2, 3, 4), *CFLOW, steps=True, heavy=True),
    Case("fastflow", "fastflow2d", RESNET, (1, 2, 3), {}, {}, steps=True),
    Case("fastflow", "fastflow2d", WIDE, (1, 2, 3), {}, {}, steps=True, heavy=True),
]
# The authors' projection to 128 dimensions, and none: anomalib's has 270 and a radius between.
CORESETS = [
    Case("coreset", "coreset", place, (), {"dimensions": dimensions}, {})
    for place, dimensions in (("to 128 dimensions", 128), ("unprojected", None))
]
NAMES = list(dict.fromkeys(case.name for case in [*CASES, *CORESETS]))
FIGURES = {
    "fit": ("fit or step, s", ".2f"),
    "1": ("1 image, ms", ".0f"),
    "8": ("8 images, ms each", ".0f"),
    "peak": ("peak, GB", ".2f"),
}
DETAILS = FIGURES | {
    "cached": ("fit or step without the backbone, s", ".2f"),
    "imports": ("memory after the imports, GB", ".2f"),
}


def is_made(folder: Path) -> bool:
    """Whether anomalib's environment stands, with the same pins."""
    ready = folder / "ready"
    return ready.is_file() and ready.read_text(encoding="utf-8").split() == list(PINS)


def make_environment(folder: Path) -> Path:
    """Make anomalib's environment unless it stands; return its interpreter."""
    python = folder / "bin" / "python"
    if not is_made(folder):
        print(f"making {folder}: {' '.join(PINS)}", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
        (folder / "ready").write_text("\n".join(PINS), encoding="utf-8")
    return python


@dataclass
class Figures:
    """All rounds of one case, by side."""

    case: Case
    threads: int
    rounds: dict[str, list[Result]] = field(default_factory=lambda: {OURS: [], THEIRS: []})
    skipped: dict[str, str] = field(default_factory=dict)  # side -> why
    radius: dict[str, float] = field(default_factory=dict)

    def values(self, side: str, key: str) -> list[float]:
        """One figure's values, ascending."""
        return sorted(result[key] for result in self.rounds[side] if key in result)

    def least(self, side: str, key: str) -> float | None:
        """The least of a figure's values: that of the least disturbed round."""
        return next(iter(self.values(side, key)), None)

    @property
    def cells(self) -> str:
        """What its rows begin with."""
        return f"{self.case.name} | {self.case.backbone} | {self.threads}"

    def __str__(self) -> str:
        return f"{self.case.name}, {self.case.backbone}, {self.threads} thread(s)"


class Bench:
    """Runs the jobs of both sides."""

    def __init__(self, arguments: argparse.Namespace, python: Path, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.programs = {
            OURS: [sys.executable, str(HERE / "peers" / "our_worker.py")],
            THEIRS: [str(python), str(HERE / "peers" / "anomalib_worker.py")],
        }

    def make_samples(self, cases: list[Case]) -> None:
        """Write what both sides read."""
        counts = [self.arguments.images, self.arguments.size, self.arguments.rows, COLUMNS]
        models = sorted({case.backbone for case in cases} - {case.backbone for case in CORESETS})
        command = [*self.programs[OURS], "--samples", str(self.folder), *map(str, counts), *models]
        subprocess.run(command, check=True)

    def job(self, case: Case, threads: int, side: str) -> dict[str, Any]:
        """What a worker is told."""
        steps = 1 if case.heavy else self.arguments.steps
        return {
            "algorithm": case.algorithm,
            "backbone": case.backbone,
            "layers": case.layers,
            "ours": case.ours,
            "theirs": case.theirs,
            "steps": steps if case.steps else 0,
            "batch": self.arguments.batch,
            "ratio": 0.1,
            "threads": threads,
            "limit": self.arguments.limit,
            "images": str(self.folder / "images.pt"),
            "weights": str(self.folder / f"{case.backbone}.pt"),
            "rows": str(self.folder / "rows.pt"),
            "dimensions": case.ours.get("dimensions"),
            "chosen": str(self.folder / f"chosen_{side}.pt"),
        }

    def run(self, case: Case, threads: int, side: str) -> Result:
        """One measurement in a new process, which inherits this one's peak: that is small."""
        command = [*self.programs[side], json.dumps(self.job(case, threads, side))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return {"skipped": f"longer than {TIMEOUT} s"}
        if done.returncode == -9:
            return {"skipped": "killed, presumably for memory"}
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            return {"skipped": f"failed: {said[-1]}"}
        result: Result = json.loads(done.stdout.splitlines()[-1])
        return result

    def radius(self, side: str) -> float:
        """Covering radius of the coreset that a side has just chosen, unprojected."""
        files = [str(self.folder / name) for name in ("rows.pt", f"chosen_{side}.pt")]
        command = [*self.programs[OURS], "--radius", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)

    def measure(self, case: Case, threads: int) -> Figures:
        """All rounds of a case, the sides in turn."""
        figures = Figures(case, threads)
        for number in range(self.arguments.rounds):
            for side in (OURS, THEIRS):
                if side in figures.skipped or OURS in figures.skipped:
                    continue
                start = time.perf_counter()
                result = self.run(case, threads, side)
                if "skipped" in result:
                    figures.skipped[side] = result["skipped"]
                figures.rounds[side].append(result)
                if case in CORESETS and "skipped" not in result and not number:
                    figures.radius[side] = self.radius(side)
                note = result.get("skipped") or f"{time.perf_counter() - start:.0f} s in all"
                print(f"{figures}, {side}: {note}", file=sys.stderr, flush=True)
        ours, theirs = (figures.least(side, "features") for side in (OURS, THEIRS))
        if ours and theirs and abs(ours - theirs) > 1e-3 * abs(ours):
            figures.skipped[THEIRS] = f"not the same features, {theirs} instead of {ours}"
        return figures


def pair(figures: Figures, key: str, form: str) -> list[str]:
    """Two cells: both sides' least values, and how many times ours theirs is."""
    values = [figures.least(side, key) for side in (OURS, THEIRS)]
    texts = ["-" if value is None else f"{value:{form}}" for value in values]
    ours, theirs = values
    if THEIRS in figures.skipped:
        if key != "peak" or theirs is None:
            texts[1] = "-"
        else:
            texts[1] = f"over {theirs:{form}}"
        return [" / ".join(texts), ""]
    return [" / ".join(texts), f"{theirs / ours:.1f}" if ours and theirs else ""]


def summary(measured: list[Figures]) -> str:
    """Markdown: a row per algorithm, backbone and threads; ours / anomalib, and their ratio."""
    heads = [text for title, _ in FIGURES.values() for text in (title, "x")]
    heads += [f"{DETAILS['cached'][0]}, ours"]
    lines = [
        f"| algorithm | backbone | threads | {' | '.join(heads)} |",
        f"|---|---|---:{'|---:' * len(heads)}|",
    ]
    for figures in measured:
        cells = [cell for key, (_, form) in FIGURES.items() for cell in pair(figures, key, form)]
        cached = figures.least(OURS, "cached")
        cells.append("" if cached is None else f"{cached:.2f}")
        lines.append(f"| {figures.cells} | {' | '.join(cells)} |")
    return "\n".join(lines)


def details(measured: list[Figures]) -> str:
    """Markdown: the least and the greatest value of every figure."""
    lines = [
        "| algorithm | backbone | threads | figure | ours, least | greatest "
        "| anomalib, least | greatest |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for figures in measured:
        for key, (title, form) in DETAILS.items():
            cells = []
            for side in (OURS, THEIRS):
                values = figures.values(side, key)
                cells += [f"{values[0]:{form}}", f"{values[-1]:{form}}"] if values else ["", ""]
            if any(cells):
                lines.append(f"| {figures.cells} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def remarks(measured: list[Figures]) -> str:
    """What was left out, the coresets' radii, and whether memory is within its target."""
    lines = []
    for figures in measured:
        lines += [f"left out: {figures}, {side}: {why}" for side, why in figures.skipped.items()]
        lines += [
            f"{figures}, covering radius of {side}: {radius:.3f}"
            for side, radius in figures.radius.items()
        ]
        peak = figures.least(OURS, "peak")
        if (figures.case.name, figures.case.backbone) == ("padim", WIDE) and peak is not None:
            verdict = "pass" if peak < PEAK else "FAIL"
            lines.append(f"{verdict}: {figures}, peak of ours {peak:.2f} GB, target {PEAK:g}")
    return "\n".join(f"* {line}" for line in lines)


def machine(arguments: argparse.Namespace) -> str:
    """Say what it runs on, and with what."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{(models or [platform.machine()])[0]}, {os.cpu_count()} cores, load "
        f"{', '.join(f'{value:.1f}' for value in os.getloadavg())}; {', '.join(PINS)}; "
        f"{arguments.images} images of {arguments.size} px, steps of {arguments.batch} images, "
        f"coreset of {arguments.rows} x {COLUMNS}; least of {arguments.rounds} round(s)"
    )


def report(arguments: argparse.Namespace) -> None:
    """Measure; print the table, and write it after every row, lest a killed run lose all."""
    conditions = machine(arguments)
    python = make_environment(arguments.environment)
    measured: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, python, Path(folder))
        cases = [case for case in [*CASES, *CORESETS] if case.name in arguments.only]
        bench.make_samples(cases)
        for case in cases:
            for threads in arguments.threads:
                figures = bench.measure(case, threads)
                measured.append(figures)
                shown = [each for each in measured if OURS not in each.skipped]
                parts = [conditions, summary(shown), remarks(measured), details(shown)]
                text = "\n\n".join(part for part in parts if part)
                if arguments.output:
                    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def main() -> None:
    """Read the command line, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=NAMES, help=",".join(NAMES)
    )
    parser.add_argument("--quick", action="store_true", help="small and once: does it work?")
    parser.add_argument("--images", type=int, default=40, help="to fit to")
    parser.add_argument("--size", type=int, default=256, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    parser.add_argument("--steps", type=int, default=4, help="timed at a time")
    parser.add_argument("--rows", type=int, default=40960, help="of the coreset alone")
    parser.add_argument("--rounds", type=int, default=3, help="the least of them is reported")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--limit", type=float, default=20.0, help="GB that a process may use")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="anomalib's")
    parser.add_argument("--output", type=Path, help="write the report here, too")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.only if name not in NAMES]:
        parser.error(f"--only: {', '.join(unknown)}: not among {', '.join(NAMES)}")
    if arguments.quick:
        arguments.images, arguments.size, arguments.batch, arguments.steps = 8, 128, 4, 1
        arguments.rows, arguments.rounds, arguments.threads = 4096, 1, [1]
    report(arguments)


if __name__ == "__main__":
    main()
