"""Time anomalib's EfficientAD on given weights and images (``latency.py`` calls it)."""

from __future__ import annotations

import json
import sys
import time
from statistics import median
from typing import Any

import torch
from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel, EfficientAdModelSize


def build(job: dict[str, Any]) -> EfficientAdModel:
    """Make the model with our weights and quantiles; teacher statistics are in the weights."""
    size = EfficientAdModelSize(job["size"])
    model = EfficientAdModel(model_size=size, pad_maps=False).eval()
    missing = model.load_state_dict(torch.load(job["weights"]), strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys
    assert all(key.startswith(("mean_std", "quantiles")) for key in missing.missing_keys)
    for name, (low, high) in zip(("st", "ae"), job["quantiles"], strict=True):
        model.quantiles[f"qa_{name}"].data.fill_(low)
        model.quantiles[f"qb_{name}"].data.fill_(high)
    return model


def main() -> None:
    """Do the job: print the median time of a call, write the maps."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    model, images = build(job), torch.load(job["images"])

    with torch.inference_mode():  # the first call warms up
        torch.save(model(images).anomaly_map[:, 0], job["maps"])

    def once() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            model(images)
        return time.perf_counter() - start

    times: list[float] = []
    end = time.perf_counter() + job["seconds"]
    while len(times) < 5 or time.perf_counter() < end:
        times.append(once())
    print(median(times))


if __name__ == "__main__":
    main()
