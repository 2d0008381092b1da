"""Time prediction: from images in the computer's memory to maps and scores in it.

    python -m benchmarks.latency --algorithm efficientad_s --batch 1
    python -m benchmarks.latency --algorithm patchcore --device cuda --batch 16 --precision fp16
    python -m benchmarks.latency --algorithm efficientad_s --anomalib    # beside anomalib's

As in EfficientAD's paper (Table 1), the time counts the transfer to the device, the backbone where
there is one, the algorithm, its map at the image's size, and the way back. Weights are random: they
change no operation. What is fitted is fitted to a few random images; a memory bank is then smaller
than a category's, which the output says. Seconds are taken between synchronisations of the device.
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
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from algorithms.base import (  # noqa: E402
    Algorithm,
    Context,
    GradientAlgorithm,
    create,
    create_teacher,
    numbered,
)
from params import models  # noqa: E402
from params.reading import Run, read_run  # noqa: E402
from stages.backbone import Backbone, network  # noqa: E402

PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
FITTED = 8  # images that memory banks and densities are made of


class RandomImages:
    """Images of noise, in batches and by number."""

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        self.images = torch.rand(count, 3, size, size, device=device)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Any) -> Tensor:
        """Return images (B, 3, H, W)."""
        return self.images[list(rows)]


class Predictor:
    """An algorithm behind its backbone, if it has one: images (N, 3, H, W) -> maps, scores."""

    def __init__(self, run: Run, name: str, size: int | None, device: torch.device) -> None:
        self.run, self.device = run, device
        config = run.algorithms.get(name) or run.bases[name]
        backbones = [run.backbones[used] for used in config.backbones]
        own = backbones[0].image_size if backbones else None
        self.size = size or own or run.benchmark.protocol.image_size
        torch.manual_seed(0)
        self.outside = RandomImages(FITTED, self.size, device)
        self.networks: list[Backbone] = []
        self.algorithm = self._build(config, backbones)
        self._fit()

    def _build(self, config: models.Algorithm, backbones: list[models.Backbone]) -> Algorithm:
        from params.hyperparameters import declaration

        declared = declaration(ROOT / "algorithms" / f"{config.algorithm}.py")
        protocol = self.run.benchmark.protocol
        context = Context(
            (self.size, self.size),
            ((3, self.size, self.size),),
            FITTED,
            seed=0,
            device=self.device,
            members=max(1, len(backbones)),
            mean=protocol.mean,
            std=protocol.std,
            outside=self.outside if "outside" in declared.needs else None,
        )
        if declared.inputs == "features":
            self.networks = [
                Backbone(drawn(one, config.layers)).to(self.device) for one in backbones
            ]
            layers = self._features(self.outside.images[:1])
            shapes: Any = tuple(tuple(layer.shape[1:]) for layer in layers)
            context = replace(context, shapes=shapes)
        elif backbones:
            context = replace(context, backbone=self._maker(backbones[0], config.layers))
        states = [self._teacher(self.run.teachers[name]) for name in config.teachers]
        if states:
            context = replace(context, teacher=numbered(states))
        if config.base is not None:
            base = Predictor(self.run, config.base, self.size, self.device)
            context = replace(context, base=base.algorithm)
        return create(config.algorithm, config.parameters, context)

    def _maker(self, config: models.Backbone, layers: list[str]) -> Callable[..., Any]:
        def make(*numbers: int) -> Any:
            chosen = [layers[number] for number in numbers] or layers
            return network(drawn(config, chosen), chosen).to(self.device)

        return make

    def _teacher(self, config: models.Teacher) -> dict[str, Tensor]:
        side, protocol = config.image_size, self.run.benchmark.protocol
        context = Context(
            (side, side), ((3, side, side),), FITTED, 0, self.device,
            mean=protocol.mean, std=protocol.std,
        )  # fmt: skip
        if config.backbone is not None:
            maker = self._maker(self.run.backbones[config.backbone], config.layers)
            context = replace(context, backbone=maker)
        state = create_teacher(config.teacher, config.parameters, context).state()
        return {key: value.detach() for key, value in state.items()}

    def _features(self, images: Tensor) -> list[Tensor]:
        if not self.networks:
            return [images]
        with torch.no_grad():
            return [layer for one in self.networks for layer in one(images).values()]

    def _fit(self) -> None:
        loader = [self._features(images) for images in self.outside.images.split(4)]
        if not isinstance(self.algorithm, GradientAlgorithm):
            self.algorithm.train_one_epoch(loader)
        with torch.no_grad():
            self.algorithm.before_eval(loader)
            if "validation" in self.algorithm.needs:
                self.algorithm.calibrate(loader)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, H, W) and scores (N,) of images on the device."""
        prediction = self.algorithm.predict(self._features(images))
        method, score = self.algorithm.primary
        return prediction.maps[method], prediction.scores[score]


def drawn(config: models.Backbone, layers: list[str]) -> dict[str, Any]:
    """A backbone's configuration with the layers asked for and random weights."""
    weights = {"source": "random", "seed": 0, "keys": "timm"}
    chosen = {name: config.layers[name] for name in layers}
    return config.model_dump(mode="json") | {"weights": weights, "layers": chosen}


def measure(
    predict: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    device: torch.device,
    precision: str,
    seconds: float,
) -> list[float]:
    """Times in seconds of predicting images (N, 3, H, W), after a warm-up, for so long."""
    dtype = PRECISIONS[precision]
    cast: Any = nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def once() -> float:
        start = time.perf_counter()
        with torch.inference_mode(), cast:
            maps, scores = predict(images.to(device, non_blocking=True))
            maps.float().cpu(), scores.float().cpu()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    end = time.perf_counter() + seconds / 4
    once()
    while time.perf_counter() < end:
        once()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        times.append(once())
    return times


def summary(times: list[float], batch: int) -> dict[str, float]:
    """Milliseconds per call at the median and the 95th percentile; images per second."""
    p50, p95 = np.percentile(times, [50, 95])
    return {
        "p50 ms": round(p50 * 1e3, 2),
        "p95 ms": round(p95 * 1e3, 2),
        "images/s": round(batch / p50, 2),
        "calls": len(times),
    }


def anomalib_weights(algorithm: Any) -> dict[str, Tensor]:
    """Our EfficientAD's weights under anomalib's names."""
    names = {}
    for part in ("teacher", "student"):
        for number, _ in enumerate(getattr(algorithm, part).convolutions):
            names[f"{part}.convolutions.{number}"] = f"{part}.conv{number + 1}"
    for number in range(5):
        names[f"autoencoder.encoder.{number}"] = f"ae.encoder.enconv{number + 1}"
    names["autoencoder.bottleneck"] = "ae.encoder.enconv6"
    for number in range(6):
        names[f"autoencoder.decoder.{number}"] = f"ae.decoder.deconv{number + 1}"
    names |= {"autoencoder.smooth": "ae.decoder.deconv7", "autoencoder.last": "ae.decoder.deconv8"}
    state = algorithm.network.state_dict()
    return {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"].contiguous()
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }


def beside_anomalib(predictor: Predictor, images: Tensor, arguments: argparse.Namespace) -> str:
    """Take turns with anomalib's EfficientAD on the same weights and images; say the ratio."""
    from benchmarks.against_anomalib import ENVIRONMENT, make_environment

    python = make_environment(ENVIRONMENT)
    algorithm: Any = predictor.algorithm
    quantiles = algorithm.network.get_buffer("quantiles")
    rounds: dict[str, list[float]] = {"ours": [], "anomalib": []}
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "size": algorithm.teacher.size,
            "weights": f"{folder}/weights.pt",
            "images": f"{folder}/images.pt",
            "maps": f"{folder}/maps.pt",
            "quantiles": quantiles.tolist(),
            "threads": arguments.threads,
            "seconds": arguments.seconds,
        }
        torch.save(anomalib_weights(algorithm), job["weights"])
        torch.save(algorithm.context.pixels(images), job["images"])
        worker = Path(__file__).parent / "peers" / "efficientad_worker.py"
        for _ in range(arguments.rounds):
            times = measure(predictor, images, predictor.device, "fp32", arguments.seconds)
            rounds["ours"].append(float(np.median(times)))
            done = subprocess.run(
                [python, worker, json.dumps(job)], check=True, capture_output=True, text=True
            )
            rounds["anomalib"].append(float(done.stdout.splitlines()[-1]))
        theirs = torch.load(job["maps"])
    with torch.inference_mode():
        ours = predictor(images)[0]
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    least = {side: min(values) for side, values in rounds.items()}
    return (
        f"ours {least['ours'] * 1e3:.0f} ms, anomalib {least['anomalib'] * 1e3:.0f} ms: "
        f"{least['anomalib'] / least['ours']:.2f} times as fast "
        f"(medians, the least of {arguments.rounds} rounds); "
        f"largest difference of the maps {error:.1e} of their maximum"
    )


def conditions(arguments: argparse.Namespace) -> str:
    """Say what it runs on."""
    if arguments.device == "cuda":
        place = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models_ = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        place = f"{(models_ or [platform.machine()])[0]}, {arguments.threads} thread(s)"
        place += f", load {os.getloadavg()[0]:.1f}"
    return f"{place}; torch {torch.__version__}"


def main() -> None:
    """Measure, and print a line of figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--algorithm", default="efficientad_s", help="a configuration")
    parser.add_argument("--variant", help="of the configuration; none: the publication's values")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, help="of the images; none: as configured")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the prediction")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure for")
    parser.add_argument("--anomalib", action="store_true", help="beside anomalib's EfficientAD")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, with --anomalib")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    overrides = {
        "preset": None,
        "title": "latency",
        "datasets": {"demo": "all"},
        "algorithms": [arguments.algorithm],
        "variant": arguments.variant,
    }
    run = read_run(ROOT, overrides)
    if arguments.anomalib:
        config = run.algorithms[arguments.algorithm]
        if config.algorithm != "efficientad" or arguments.device != "cpu":
            parser.error("--anomalib wants an efficientad configuration, on the CPU")
        # Its empty border lies under the normalisation, ours over it: both without.
        changed = config.model_copy(update={"parameters": {**config.parameters, "border": 0}})
        run = replace(run, algorithms={arguments.algorithm: changed})
    device = torch.device(arguments.device)
    predictor = Predictor(run, arguments.algorithm, arguments.size, device)
    images = torch.randn(arguments.batch, 3, predictor.size, predictor.size)
    if device.type == "cuda":
        images = images.pin_memory()
    if arguments.anomalib:
        print(f"{conditions(arguments)}\n{beside_anomalib(predictor, images, arguments)}")
        return
    call = torch.compile(predictor) if arguments.compile else predictor
    times = measure(call, images, device, arguments.precision, arguments.seconds)
    fields = {
        "algorithm": arguments.algorithm,
        "variant": arguments.variant or "publication",
        "batch": arguments.batch,
        "size": predictor.size,
        "precision": arguments.precision + (", compiled" if arguments.compile else ""),
        **summary(times, arguments.batch),
        "fitted to": FITTED,
    }
    print(conditions(arguments))
    print(", ".join(f"{key} {value}" for key, value in fields.items()))


if __name__ == "__main__":
    main()
