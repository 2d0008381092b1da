"""``benchmarks/latency.py``: it builds what a configuration says, and counts right."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import latency
from benchmarks.against_anomalib import ENVIRONMENT, is_made
from params.reading import read_run

CPU = torch.device("cpu")


def predictor(name: str, size: int) -> latency.Predictor:
    run = read_run(
        latency.ROOT,
        {
            "preset": None,
            "title": "test",
            "datasets": {"demo": "all"},
            "algorithms": [name],
            "variant": "demo",
        },
    )
    return latency.Predictor(run, name, size, CPU)


# Features of one backbone, of two, images and a network, a teacher, and an algorithm upon another.
@pytest.mark.parametrize(
    ("name", "size"),
    [("patchcore", 64), ("pfm", 64), ("cdo", 64), ("puad_s", 128), ("student_teacher", 64)],
)
def test_it_predicts_images_of_a_configuration(name: str, size: int) -> None:
    maps, scores = predictor(name, size)(torch.randn(3, 3, size, size))
    assert maps.shape == (3, size, size)
    assert scores.shape == (3,)
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_calls_are_timed_apart(precision: str) -> None:
    seen = []

    def predict(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(images))
        return images[:, 0] @ images[:, 1], images.amax(dim=(1, 2, 3))

    times = latency.measure(predict, torch.randn(2, 3, 8, 8), CPU, precision, 0.01)
    assert len(times) >= 5
    assert len(seen) > len(times)  # the warm-up
    assert set(seen) == {2}


def test_summary() -> None:
    told = latency.summary([0.1, 0.2, 0.3], batch=4)
    assert told == {"p50 ms": 200.0, "p95 ms": 290.0, "images/s": 20.0, "calls": 3}


def test_weights_have_anomalibs_names() -> None:
    algorithm = predictor("efficientad_s", 128).algorithm
    named = latency.anomalib_weights(algorithm)
    assert len(named) == len(dict(algorithm.network.named_parameters()))
    assert named["student.conv4.bias"].shape == (2 * named["teacher.conv4.bias"].shape[0],)
    assert named["ae.decoder.deconv8.weight"].shape[0] == named["teacher.conv4.bias"].shape[0]


@pytest.mark.slow
@pytest.mark.skipif(
    not is_made(ENVIRONMENT),
    reason="anomalib's environment is absent (benchmarks/against_anomalib.py makes it: 6 GB)",
)
def test_maps_are_anomalibs() -> None:
    run = read_run(
        latency.ROOT,
        {"preset": None, "title": "test", "datasets": {"demo": "all"},
         "algorithms": ["efficientad_s"], "variant": None},
    )  # fmt: skip
    config = run.algorithms["efficientad_s"]
    config.parameters["border"] = 0
    one = latency.Predictor(run, "efficientad_s", 256, CPU)
    arguments = argparse.Namespace(threads=1, seconds=0.5, rounds=1)
    told = latency.beside_anomalib(one, torch.randn(1, 3, 256, 256), arguments)
    assert float(told.rsplit("maps ", 1)[1].split(" ")[0]) < 1e-4
