"""Compute a backbone's features of one category, once, for every algorithm that asks for them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from stages.artifacts.features import FeatureWriter
from stages.artifacts.files import atomic_path
from stages.artifacts.hdf5 import LIBRARY
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.command import Options, run

BATCH_SIZE = 16  # bounds the memory; results do not depend on it beyond rounding


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the features of all usable images: train, test and, where there are any, validation."""
    import h5py
    import torch
    from tqdm import tqdm

    from stages.backbone import Backbone
    from stages.batches import BatchLoader, ImageReader, epoch_order
    from stages.devices import prepare

    parameters, config = job.parameters, job.parameters["backbone"]
    device = prepare(options.device, options.threads)
    backbone = Backbone(config).to(device)
    index = read_index(job.input("index"))
    root = Path(parameters["root"]) / job.key["category"]
    images, seconds = 0, 0.0
    with (
        atomic_path(job.outputs["features"]) as temporary,
        h5py.File(temporary, "w", libver=LIBRARY) as file,
    ):
        file.attrs["backbone"] = config["model"]
        for split in ("train", "test", "validation"):
            table = usable(index, split)
            if split == "validation" and table.empty:
                continue
            writer = FeatureWriter(file, split, table["image_id"].tolist(), config["dtype"])
            reader = ImageReader(
                [root / path for path in table["path"]],
                parameters["image_size"],
                parameters["crop"],
                parameters["interpolation"],
                config["mean"],
                config["std"],
                options.threads,
            )
            order = epoch_order(len(reader), 0, 0, shuffle=False)
            with reader, torch.inference_mode():
                for batch in tqdm(
                    BatchLoader(reader, order, BATCH_SIZE, device),
                    desc=f"features {split}",
                    disable=None,
                    mininterval=1.0,
                ):
                    start = time.perf_counter()
                    layers = {k: v.cpu().numpy() for k, v in backbone(batch[0]).items()}
                    seconds += time.perf_counter() - start
                    writer.append(layers)
            images += len(reader)
    return {"images": images, "backbone_seconds_per_image": seconds / max(images, 1)}


if __name__ == "__main__":
    run("features", __doc__, body)
