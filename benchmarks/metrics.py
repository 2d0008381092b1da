"""Time the pixel metrics, and weigh their memory, against references on the same maps.

    python benchmarks/metrics.py --sizes 256 1024 --repeats 3 --peers-python PEERS/bin/python

Each measurement is a new process that warms up on two images, loads the maps and runs once. Rounds
of all measurements follow one another; of each the fastest run is reported. Peak memory is what
the process grew by, maps included. The reference AUPRO is written here, by MVTec's definition;
peers are packages, left out where they are not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGES = {1024: (117, 90)}  # by size: all, and the defective ones, which come first
OTHER_IMAGES = (83, 63)
KNOTS = 16  # pixels between the knots of the noise
FASTER = {256: 10.0, 1024: 15.0}  # targets: all five together against the reference AUPRO alone
PL_SECONDS, PL_FASTER, MEMORY, DIFFERENCE = 0.5, 10.0, 3.0, 1e-6
TIMEOUT = 1800  # seconds

Array = NDArray[Any]
Values = dict[str, float | Callable[[], float]]  # what is called is not timed
Result = dict[str, Any]


def make_samples(folder: Path, size: int) -> None:
    """Write maps and masks (N, H, W) as .npy and as HDF5, compressed as the stages do.

    The noise is smooth. A defect is one to three ellipses of 1 to 5 % of the image each, on which
    the map rises to hills a little wider than they are.
    """
    import h5py

    images, defective = IMAGES.get(size, OTHER_IMAGES)
    random = np.random.default_rng(size)
    shape = (images, size, size)
    maps = np.lib.format.open_memmap(folder / "maps.npy", "w+", np.float32, shape)
    masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.bool, shape)
    pixels = np.arange(size, dtype=np.float32)
    knots = KNOTS * np.arange(-2, size // KNOTS + 3, dtype=np.float32)
    weights = np.exp(-0.5 * ((pixels[:, None] - knots) / KNOTS) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    for image in range(images):
        coarse = random.standard_normal((knots.size, knots.size), np.float32)
        maps[image] = 0.35 + 0.05 * (weights @ coarse @ weights.T)  # torchmetrics wants [0, 1]
        for _ in range(random.integers(1, 4) if image < defective else 0):
            y, x = random.uniform(0.15, 0.85, 2) * size
            radius = size * np.sqrt(random.uniform(0.01, 0.05) / np.pi)
            stretch = random.uniform(0.7, 1.4)
            down, right = (pixels - y) / radius / stretch, (pixels - x) / radius * stretch
            distance = (down[:, None] ** 2 + right**2).astype(np.float32)
            masks[image] |= distance <= 1
            maps[image] += random.uniform(0.05, 0.2) * np.clip(1.3 - distance, 0, 1)
    with h5py.File(folder / "samples.h5", "w") as file:
        for name, array in (("maps", maps), ("masks", masks)):
            file.create_dataset(
                name, data=array, chunks=(1, size, size), compression="lzf", shuffle=True
            )


def five(maps: Any, masks: Any) -> Values:
    """Compute pixel AUROC, AP, F1-max and AUPRO up to 0.3 and 0.05 from one sort."""
    from visionad_metrics import pixel_metrics

    names: dict[str, dict[str, Any]] = {"pixel_auroc": {}, "pixel_ap": {}, "pixel_f1max": {}}
    names |= {"aupro": {}, "aupro_005": {"metric": "aupro", "limit": 0.05}}
    return {key: found.value for key, found in pixel_metrics(maps, masks, names).items()}


def single(name: str, maps: Array, masks: Array) -> Values:
    """Compute one metric of the catalogue with its defaults."""
    from visionad_metrics import compute, level

    if level(name) == "image" or name == "spro":
        raise ImportError("it takes more than maps and masks")
    return {name: compute(name, maps, masks, None, None).value}


def pl_of_package(maps: Array, masks: Array) -> Values:
    """Compute PL by the rules of proportion-localised, in one direction."""
    from visionad_metrics import pl

    return {"pl_package": pl(maps, masks, preset="package_0_1_3", direction="increasing").value}


def reference_aupro(maps: Array, masks: Array) -> Values:
    """Compute AUPRO up to 0.3; up to 0.05 for comparison only."""
    fpr, pro = reference_curve(maps, masks)
    return {
        "aupro": reference_area(fpr, pro, 0.3),
        "aupro_005": lambda: reference_area(fpr, pro, 0.05),
    }


def reference_curve(maps: Array, masks: Array) -> tuple[Array, Array]:
    """Return false positive rate and per-region overlap at every distinct score.

    Step by step as in MVTec's evaluation code of 2022, but for the regions of an image, which are
    weighted at once.
    """
    from scipy.ndimage import label

    false_positive = np.zeros(maps.shape, np.uint32)
    overlap = np.zeros(maps.shape, np.float64)
    regions = 0
    for image, mask in enumerate(masks):
        labels, count = label(mask, structure=np.ones((3, 3), int))
        false_positive[image] = labels == 0
        overlap[image] = np.append(0, 1 / np.bincount(labels.ravel())[1:])[labels]
        regions += count
    descending = np.argsort(maps, axis=None)[::-1]
    false_positives = np.cumsum(false_positive.ravel()[descending])
    overlaps = np.cumsum(overlap.ravel()[descending])
    scores = maps.ravel()[descending]
    last = np.append(scores[1:] != scores[:-1], True)  # of equal scores
    fpr = (false_positives[last] / false_positives[-1]).astype(np.float32)
    pro = np.minimum(overlaps[last] / regions, 1)
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    return np.concatenate([zero, fpr, one]), np.concatenate([zero, pro, one])


def reference_area(fpr: Array, pro: Array, limit: float) -> float:
    """Return the area by trapezoids up to ``limit``, where the overlap is interpolated."""
    inside = int(np.count_nonzero(fpr <= limit))
    end = float(np.interp(limit, fpr[inside - 1 : inside + 1], pro[inside - 1 : inside + 1]))
    x, y = np.append(fpr[:inside], limit), np.append(pro[:inside], end)
    return float(np.trapezoid(y, x) / limit)


def scikit_learn(function: str, name: str, maps: Array, masks: Array) -> Values:
    """Compute with scikit-learn; of a precision-recall curve, the highest F1."""
    from sklearn import metrics

    result = getattr(metrics, function)(masks.reshape(-1), maps.reshape(-1))
    if name != "pixel_f1max":
        return {name: float(result)}
    precision, recall, _ = result
    total = np.maximum(precision + recall, np.finfo(float).tiny)
    return {name: float((2 * precision * recall / total).max())}


def torchmetrics(function: str, name: str, maps: Array, masks: Array) -> Values:
    """Compute with torchmetrics, without bins."""
    import torch
    from torchmetrics.functional import classification  # type: ignore[import-not-found]

    labels = torch.from_numpy(masks.view(np.uint8))
    return {name: float(getattr(classification, function)(torch.from_numpy(maps), labels))}


def anomalib(maps: Array, masks: Array) -> Values:
    """Compute AUPRO with anomalib."""
    import torch
    from anomalib.metrics.aupro import _AUPRO  # type: ignore[import-not-found]

    aupro = _AUPRO(fpr_limit=0.3)
    aupro.update(torch.from_numpy(maps), torch.from_numpy(masks))
    return {"aupro": float(aupro.compute())}


def pyaupro(maps: Array, masks: Array) -> Values:
    """Compute AUPRO with pyaupro."""
    import torch
    from pyaupro import PerRegionOverlap, auc_compute  # type: ignore[import-not-found]

    overlap = PerRegionOverlap()
    overlap.update(torch.from_numpy(maps), torch.from_numpy(masks))
    return {"aupro": float(auc_compute(*overlap.compute(), limit=0.3))}


def proportion_localised(maps: Array, masks: Array) -> Values:
    """Compute PL with its package, told that anomalies score high: else it takes twice as long."""
    if maps.shape[1:] != (256, 256):
        raise ImportError("it takes maps of 256 x 256 pixels only")
    from proportion_localised import PL  # type: ignore[import-not-found]

    score, _ = PL(anomaly_likelihood_definitely_increasing=True).calculate(maps, masks)
    return {"pl_package": float(score)}


FIVE, MMAP, HDF5 = "all five", "all five, mmap", "all five, HDF5"
AUPRO, PEER_PL = "reference AUPRO", "proportion-localised"
OF_DEFECTIVE = ("pl", "pl_package", PEER_PL)  # images
Measurement = Callable[[Any, Any], Values]
OURS: dict[str, Measurement] = {FIVE: five, MMAP: five, HDF5: five, "pl_package": pl_of_package}
REFERENCES: dict[str, Measurement] = {
    AUPRO: reference_aupro,
    "sklearn roc_auc_score": partial(scikit_learn, "roc_auc_score", "pixel_auroc"),
    "sklearn average_precision_score": partial(scikit_learn, "average_precision_score", "pixel_ap"),
    "sklearn precision_recall_curve": partial(
        scikit_learn, "precision_recall_curve", "pixel_f1max"
    ),
}
PEERS: dict[str, Measurement] = {
    "pyaupro": pyaupro,
    "anomalib AUPRO": anomalib,
    "torchmetrics auroc": partial(torchmetrics, "binary_auroc", "pixel_auroc"),
    "torchmetrics average precision": partial(torchmetrics, "binary_average_precision", "pixel_ap"),
    PEER_PL: proportion_localised,
}
OTHERS = {**REFERENCES, **PEERS}


def load(name: str, folder: Path) -> tuple[Any, Any]:
    """Load maps and masks as the measurement asks for them."""
    if name == HDF5:
        import h5py

        file = h5py.File(folder / "samples.h5")
        return file["maps"], file["masks"]
    mode: Any = "r" if name == MMAP else None
    maps, masks = (np.load(folder / f"{key}.npy", mmap_mode=mode) for key in ("maps", "masks"))
    images, defective = IMAGES.get(maps.shape[1], OTHER_IMAGES)
    count = defective if name in OF_DEFECTIVE else images
    return maps[:count], masks[:count]


def measure(name: str, folder: Path) -> Result:
    """Run one measurement in this process: seconds, bytes and values, or why there are none."""
    measurement = {**OURS, **OTHERS}.get(name, partial(single, name))
    if name == HDF5:
        load(name, folder)  # imports h5py
    maps, masks = load(MMAP, folder)
    few = [0, 1] if name in OF_DEFECTIVE else [0, -1]
    try:
        measurement(maps[few], masks[few])
    except ImportError as error:
        return {"skipped": str(error)}
    del maps, masks
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    maps, masks = load(name, folder)
    start = time.perf_counter()
    values = measurement(maps, masks)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return {
        "seconds": seconds,
        "peak": peak - pages * resource.getpagesize(),
        "values": {key: value() if callable(value) else value for key, value in values.items()},
    }


def child(python: str, name: str, folder: Path) -> Result:
    """Run one measurement in a new process, which inherits this one's peak: that is small."""
    command = [python, __file__, "--one", name, "--folder", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {"skipped": f"longer than {TIMEOUT} s"}
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_all(size: int, repeats: int, peers_python: str) -> dict[str, Result]:
    """Measure everything at one size in rounds; keep each one's fastest run and least memory."""
    from visionad_metrics import names

    best: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--make", str(size), "--folder", folder]
        subprocess.run(command, check=True)
        for name in repeats * [*OURS, *names(), *OTHERS]:
            known = best.get(name, {})
            if "skipped" in known:
                continue
            python = peers_python if name in PEERS else sys.executable
            found = child(python, name, Path(folder))
            for key in known.keys() & found.keys() & {"seconds", "peak"}:
                found[key] = min(found[key], known[key])
            best[name] = found
            note = found.get("skipped") or f"{found['seconds']:.3f} s"
            print(f"{size} px, {name}: {note}", file=sys.stderr, flush=True)
    return best


def differences(ours: Result, other: Result) -> list[float]:
    """Differences of the values that both have."""
    mine, others = ours["values"], other["values"]
    return [abs(mine[key] - others[key]) for key in mine.keys() & others.keys()]


def table(results: dict[str, Result], maps_bytes: int) -> str:
    """Markdown. The right half compares a reference with ours: how many times longer it takes than
    the same metric alone and than all five, and the largest difference of a value."""
    lines = [
        "| measurement | seconds | peak MiB | / maps | / same metric | / all five | difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        peak, seconds = result["peak"], result["seconds"]
        cells = [name, f"{seconds:.3f}", f"{peak / 2**20:.0f}", f"{peak / maps_bytes:.1f}"]
        far: list[float] = []
        for ours in (results.get(next(iter(result["values"]))), results[FIVE]):
            compared = differences(ours, result) if ours and name in OTHERS else []
            cells.append(f"{seconds / ours['seconds']:.1f}" if ours and compared else "")
            far += compared
        cells.append(f"{max(far):.0e}" if far else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(size: int, results: dict[str, Result], maps_bytes: int) -> list[tuple[str, bool]]:
    """What was to be reached at this size, and whether it was."""
    times, wanted = results[AUPRO]["seconds"] / results[FIVE]["seconds"], FASTER.get(size, 10.0)
    checks = [(f"all five {times:.1f} x faster than {AUPRO}, target {wanted:g}", times >= wanted)]
    if size == 256 and "pl" in results:
        seconds = results["pl"]["seconds"]
        checks.append((f"pl in {seconds:.3f} s, target {PL_SECONDS}", seconds < PL_SECONDS))
        if PEER_PL in results:
            times = results[PEER_PL]["seconds"] / seconds
            text = f"pl {times:.1f} x faster than {PEER_PL}, target {PL_FASTER:g}"
            checks.append((text, times >= PL_FASTER))
    ours = [name for name in results if name not in OTHERS]
    for name in ours:
        share = results[name]["peak"] / maps_bytes
        if name == FIVE or share >= MEMORY:
            text = f"peak of {name} {share:.2f} x the maps, target {MEMORY:g}"
            checks.append((text, share < MEMORY))
    references = [results[name] for name in REFERENCES if name in results]
    far = max(d for name in ours for other in references for d in differences(results[name], other))
    checks.append((f"largest difference {far:.0e}, target {DIFFERENCE:.0e}", far < DIFFERENCE))
    return checks


def machine(repeats: int) -> str:
    """Say what it runs on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{(models or [platform.machine()])[0]}, {os.cpu_count()} cores, "
        f"load {', '.join(f'{value:.1f}' for value in os.getloadavg())}; numpy {np.__version__}, "
        f"{os.environ['OMP_NUM_THREADS']} thread(s), best of {repeats}"
    )


def report(arguments: argparse.Namespace) -> None:
    """Print the conditions, and for each size a table and the targets."""
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    numbers: Result = {"machine": machine(arguments.repeats), "sizes": {}}
    print(numbers["machine"])
    for size in arguments.sizes:
        results = measure_all(size, arguments.repeats, arguments.peers_python)
        numbers["sizes"][size] = results
        images, _ = IMAGES.get(size, OTHER_IMAGES)
        maps_bytes = 4 * images * size**2
        print(f"\n{images} maps of {size} x {size}, {maps_bytes / 2**20:.0f} MiB\n")
        measured = {name: found for name, found in results.items() if "skipped" not in found}
        print(table(measured, maps_bytes), end="\n\n")
        for name in (name for name in results if name not in measured):
            print(f"* left out: {name}: {results[name]['skipped']}")
        for text, passed in targets(size, measured, maps_bytes):
            print(f"* {'pass' if passed else 'FAIL'}: {text}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2), encoding="utf-8")


def main() -> None:
    """Report, or do what one of the report's processes is for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--repeats", type=int, default=3, help="the fastest is reported")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-python", default=sys.executable, help="runs the peers")
    parser.add_argument("--json", type=Path, help="write all numbers here too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make_samples(arguments.folder, arguments.make)
    elif arguments.one:
        print(json.dumps(measure(arguments.one, arguments.folder)))
    else:
        report(arguments)


if __name__ == "__main__":
    main()
