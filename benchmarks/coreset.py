"""Time the greedy coreset against the loops of its peers, on the same features in one process.

    python benchmarks/coreset.py --rows 20480 --columns 384 --picks 600

The peers' loops are written anew here, operation for operation, so that nothing but torch is
needed; where anomalib is installed, its own class runs too. A *method* is a projection and a loop:
``ms per pick`` is the loop alone, ``seconds`` is both. The radius is the largest distance from any
row to its nearest pick, in the unprojected space: lower is a better coreset.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from algorithms.blocks.coreset import coverage_radius, greedy_coreset, random_projection

PROJECTED = 128  # dimensions, ours and patchcore-inspection's
STARTS = 10

Loop = Callable[[Tensor, int, torch.Generator], Tensor]
Projection = Callable[[Tensor, torch.Generator], Tensor]


def unprojected(features: Tensor, generator: torch.Generator) -> Tensor:
    """The features themselves."""
    return features


def to_128(features: Tensor, generator: torch.Generator) -> Tensor:
    """Dense projection to 128 dimensions by uniform weights."""
    return random_projection(features, PROJECTED, generator)


def johnson_lindenstrauss(features: Tensor, generator: torch.Generator) -> Tensor:
    """Sparse projection of anomalib's kind.

    The number of dimensions is what the Johnson-Lindenstrauss lemma asks for with a distortion of
    0.9, whatever the width of the features; a weight is 0 with probability 1 - 1/sqrt(width), else
    +-1, scaled to keep lengths.
    """
    count, width = features.shape
    dimensions = int(4 * math.log(count) / (0.9**2 / 2 - 0.9**3 / 3))
    density = 1 / math.sqrt(width)
    signs = torch.rand(width, dimensions, generator=generator)
    weights = (signs < density / 2).float() - (signs > 1 - density / 2).float()
    return features @ (weights / math.sqrt(density * dimensions))


def ours(features: Tensor, picks: int, generator: torch.Generator) -> Tensor:
    """Picks among few thousand candidates while they are sure to hold the farthest row, then one
    matrix product that brings all rows up to date."""
    return greedy_coreset(features, picks, STARTS, generator)


def k_centre(features: Tensor, picks: int, generator: torch.Generator) -> Tensor:
    """Loop of anomalib's kind (2.7): the farthest row, then all Euclidean distances to it.

    The first pick is a random row. Each pick subtracts the last one from all rows, a table as large
    as the features, and takes the norm of every difference.
    """
    nearest = torch.full((len(features),), math.inf)
    chosen = torch.randint(len(features), (picks,), generator=generator)
    for step in range(1, picks):
        difference = features - features[chosen[step - 1]]
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(difference, dim=1))
        chosen[step] = nearest.argmax()
        nearest[chosen[step]] = 0
    return chosen


def concatenated_columns(features: Tensor, picks: int, generator: torch.Generator) -> Tensor:
    """Loop of patchcore-inspection's kind: approximate start, minimum over two stacked columns.

    The mean distance to ten random rows starts the running minimum. Each pick computes the norms
    of all rows and the products with the pick as batched matrices, puts the new distances beside
    the old ones as a second column, and reduces the (rows, 2) table.
    """

    def norms(rows: Tensor) -> Tensor:
        return torch.bmm(rows[:, None, :], rows[:, :, None]).flatten()

    def distances_to(rows: Tensor) -> Tensor:
        squared = norms(features)[:, None] + norms(rows)[None, :] - 2 * (features @ rows.T)
        return squared.clamp(min=0).sqrt()

    starts = torch.randperm(len(features), generator=generator)[:STARTS]
    nearest = distances_to(features[starts]).mean(dim=1, keepdim=True)
    chosen = []
    for _ in range(picks):
        pick = int(nearest.argmax())
        chosen.append(pick)
        columns = torch.cat([nearest, distances_to(features[pick : pick + 1])], dim=-1)
        nearest = columns.min(dim=1).values.reshape(-1, 1)
    return torch.tensor(chosen)


METHODS: list[tuple[str, Projection, Loop]] = [
    (f"ours, {PROJECTED} dimensions", to_128, ours),
    ("ours, unprojected", unprojected, ours),
    ("as anomalib (sparse projection, k-centre)", johnson_lindenstrauss, k_centre),
    (f"as patchcore-inspection ({PROJECTED} dimensions)", to_128, concatenated_columns),
]


def anomalib_method() -> tuple[str, Projection, Loop] | None:
    """Anomalib's own class, if it is installed."""
    try:
        from anomalib.models.components import KCenterGreedy  # type: ignore[import-not-found]
    except ImportError:
        return None

    def loop(features: Tensor, picks: int, generator: torch.Generator) -> Tensor:
        torch.manual_seed(0)  # it draws from the global generator
        sampler = KCenterGreedy(features, sampling_ratio=(picks + 0.5) / len(features))
        return torch.as_tensor(sampler.select_coreset_idxs())

    return "anomalib itself (its projection is in its loop)", unprojected, loop


def patches(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Features like patches: some hundred clusters of unequal size and width, non-negative."""
    centres = torch.randn(200, columns, generator=generator)
    widths = 0.1 + torch.rand(200, 1, generator=generator)
    sizes = torch.rand(200, generator=generator).pow(3)
    member = torch.multinomial(sizes, rows, replacement=True, generator=generator)
    noise = torch.randn(rows, columns, generator=generator)
    return (centres[member] + widths[member] * noise).clamp_(min=0)


@dataclass(frozen=True)
class Measurement:
    """Best of the repetitions."""

    name: str
    dimensions: int
    seconds: float
    loop_seconds: float
    radius: float


def measure(
    name: str, project: Projection, loop: Loop, features: Tensor, picks: int, repeats: int
) -> Measurement:
    """Run a method ``repeats`` times; the fastest run is the least disturbed one."""
    best: Measurement | None = None
    for _ in range(repeats):
        generator = torch.Generator().manual_seed(0)
        start = time.perf_counter()
        projected = project(features, generator)
        between = time.perf_counter()
        chosen = loop(projected, picks, generator)
        end = time.perf_counter()
        if best is None or end - start < best.seconds:
            radius = coverage_radius(features, chosen)
            width = projected.shape[1]
            best = Measurement(name, width, end - start, end - between, radius)
    assert best is not None
    return best


def table(measurements: list[Measurement], picks: int) -> str:
    """Markdown; ratios are to the first row."""
    lines = [
        "| method | dimensions | seconds | ms per pick | time / ours | radius |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.name} | {row.dimensions} | {row.seconds:.2f} "
        f"| {1000 * row.loop_seconds / picks:.2f} "
        f"| {row.seconds / measurements[0].seconds:.1f} | {row.radius:.2f} |"
        for row in measurements
    ]
    return "\n".join(lines)


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Print the conditions and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20480)
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--picks", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest is reported")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    features = patches(
        arguments.rows, arguments.columns, torch.Generator().manual_seed(arguments.rows)
    )
    own = anomalib_method()
    with torch.inference_mode():
        measurements = [
            measure(*method, features, arguments.picks, arguments.repeats)
            for method in METHODS + ([own] if own else [])
        ]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{arguments.rows} rows x {arguments.columns} columns, {arguments.picks} picks, best of "
        f"{arguments.repeats}; {processor()}, {os.cpu_count()} cores, {arguments.threads} "
        f"thread(s), load {load}; torch {torch.__version__}\n"
    )
    print(table(measurements, arguments.picks))


if __name__ == "__main__":
    main()
