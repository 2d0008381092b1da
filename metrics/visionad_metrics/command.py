"""The command ``visionad-metrics``: anomaly maps and masks in files, metrics out."""

import argparse
import ast
import csv
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from visionad_metrics.reading import ResizedMaps, read_maps, read_masks
from visionad_metrics.registry import compute_on, level, names
from visionad_metrics.samples import Samples

DEFAULT_METRICS = ("image_auroc", "pixel_auroc", "aupro", "pl")

DESCRIPTION = """\
Score anomaly maps against masks, exactly. Higher is more anomalous.

MAPS, one of
  maps.npy      (N, H, W) numbers
  maps.npz      maps; if you like also ids (N,), scores (N,), labels (N,)
  maps.h5       the same as data sets, or a results file of the VisionAD benchmark
  FOLDER        [test/]<defect type>/<name>.tiff (or .tif, .png, .npy), as MVTec's evaluation reads
MASKS, one of
  masks.npy     (N, H, W); .npz and .h5: masks, if you like also ids
  FOLDER        <defect type>/<name>_mask.png, <defect type>/<name>.png, or, to be united,
                <defect type>/<name>/*.png; images of types good, ok and Normal need none
"""

EPILOG = """\
Values of masks above 0 are anomalous. Masks are resized by nearest neighbour after that, maps
bilinearly, antialiased. Without --size, maps are brought to the masks' size. An image score that is
not given is the maximum of its map as stored; a label that is not given says whether the mask has
an anomalous pixel as stored.

examples
  visionad-metrics maps.npy masks.npy
  visionad-metrics maps/screw mvtec_ad/screw/ground_truth --size 256 --output screw.json
  visionad-metrics maps.npz masks.npz --metrics image_auroc aupro aupro:limit=0.05 --format csv
  visionad-metrics results/maps/patchcore/demo/kit/seed0.h5 data/demo/kit/ground_truth --size 256

metrics: {metrics}
"""


def parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    result = argparse.ArgumentParser(
        prog="visionad-metrics",
        usage="%(prog)s MAPS MASKS [options]",
        description=DESCRIPTION,
        epilog=EPILOG.format(metrics=", ".join(names())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("maps", metavar="MAPS", type=Path, help="a file or folder of anomaly maps")
    add("masks", metavar="MASKS", type=Path, help="a file or folder of masks")
    add(
        "--metrics",
        metavar="METRIC",
        nargs="+",
        default=DEFAULT_METRICS,
        help=f"name or name:key=value,key=value (default: {' '.join(DEFAULT_METRICS)})",
    )
    add("--size", type=_pixels, help="bring maps and masks to SIZE x SIZE pixels first")
    add("--method", metavar="NAME", help="which maps and scores of a results file (else primary)")
    add("--format", choices=("json", "csv"), default="json", help="(default: json)")
    add("--curves", action="store_true", help="put each metric's curve into the JSON")
    add("--output", metavar="FILE", type=Path, help="where to write (default: standard output)")
    add("--version", action="version", version=f"%(prog)s {version('visionad-metrics')}")
    return result


def parse_metric(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``name`` or ``name:key=value,key=value``; values are Python literals, true and false.

    What is neither is a string.

    Raises
    ------
    ValueError
        If a parameter is not ``key=value``, or a key comes twice.
    """
    name, colon, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals or key in parameters:
            raise ValueError(f"metric {text!r} should be name or name:key=value,key=value")
        parameters[key] = _literal(value)
    return name, parameters


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Read maps and masks, compute the metrics, and return all that is written.

    Raises
    ------
    LookupError, TypeError, ValueError
        If a metric, one of its parameters, a file or an array is not as described.
    """
    wanted = {text: parse_metric(text) for text in options.metrics}
    for name, _ in wanted.values():
        level(name)  # an unknown name is an error before anything is read
    size = None if options.size is None else (options.size, options.size)
    with ExitStack() as files:
        stored = read_maps(options.maps, options.method, files)
        masks, defective = read_masks(options.masks, stored, size, files)
        labels = defective if stored.labels is None else stored.labels
        scores = stored.maxima() if stored.scores is None else stored.scores
        on_disk: Any = ResizedMaps(stored, masks.shape[1:])
        samples = Samples(on_disk, masks, scores, labels)
        metrics = {}
        for label, (name, parameters) in wanted.items():
            result = compute_on(samples, name, parameters)
            metrics[label] = {
                "value": result.value,
                "reason": result.reason,
                "parameters": parameters,
                "details": result.details,
            }
            if options.curves:
                metrics[label]["curve"] = result.curve
    return {
        "maps": str(options.maps),
        "masks": str(options.masks),
        **({"methods": stored.methods} if stored.methods else {}),
        "images": stored.count,
        "good_images": int(np.count_nonzero(~labels)),
        "defective_images": int(np.count_nonzero(labels)),
        "image_size": masks.shape[1:],
        "scores": "maximum of the map" if stored.scores is None else "given",
        "labels": "from the masks" if stored.labels is None else "given",
        "version": version("visionad-metrics"),
        "metrics": metrics,
    }


def as_json(report: dict[str, Any]) -> str:
    """Write a report as JSON; numbers that JSON lacks, as nan, are null."""
    return json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(report: dict[str, Any]) -> str:
    """Write the metrics of a report as CSV; an undefined value is empty and has a reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "value", "reason", "parameters"])
    for label, metric in _plain(report["metrics"]).items():
        parameters = json.dumps(metric["parameters"], ensure_ascii=False)
        writer.writerow([label, metric["value"], metric["reason"], parameters])
    return text.getvalue()


def write(text: str, path: Path) -> None:
    """Write a file at once or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line on standard error."""
    options = parser().parse_args(arguments)
    try:
        if options.curves and options.format == "csv":
            raise ValueError("CSV holds no curves; ask for --format json")
        if options.output and not options.output.parent.is_dir():
            raise ValueError(f"{options.output}: no such folder to write to")
        report = evaluate(options)
        text = as_json(report) if options.format == "json" else as_csv(report)
        if options.output:
            write(text, options.output)
    except (LookupError, TypeError, ValueError, OSError) as error:
        print(f"visionad-metrics: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.format == "csv" and report["scores"] != "given":  # CSV has no place to say it
        print(f"visionad-metrics: image scores: {report['scores']}", file=sys.stderr)
    if not options.output:
        sys.stdout.write(text)
    return 0


def _pixels(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be a positive number of pixels, got {text}")
    return size


def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _plain(value: Any) -> Any:
    """Turn NumPy's and non-finite numbers, at any depth, into what JSON knows."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


if __name__ == "__main__":
    sys.exit(main())
