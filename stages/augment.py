"""Compute a backbone's features of augmented training images, once, for all algorithms and seeds.

The copies that ``protocol.augmentation`` asks for are drawn with one seed. Features of the images
as they are, of training, validation and test, are those of the stage `features`, untouched.
"""

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

SEED = 0


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the features of all copies of the usable training images, as split `train`."""
    import h5py
    import torch
    from tqdm import tqdm

    from stages.augmented.readers import Copies
    from stages.backbone import Backbone
    from stages.batches import BatchLoader, epoch_order
    from stages.devices import prepare
    from stages.features import BATCH_SIZE
    from stages.inputs import image_reader

    parameters, config = job.parameters, job.parameters["backbone"]
    settings = parameters["augmentation"]
    device = prepare(options.device, options.threads)
    backbone = Backbone(config).to(device)
    table = usable(read_index(job.input("index")), "train")
    root = Path(parameters["root"]) / job.key["category"]
    normalised = {**parameters, "mean": config["mean"], "std": config["std"]}
    ids = [f"{name}#{copy + 1}" for copy in range(settings["copies"]) for name in table["image_id"]]
    seconds = 0.0
    with (
        atomic_path(job.outputs["features"]) as temporary,
        h5py.File(temporary, "w", libver=LIBRARY) as file,
        image_reader(
            normalised, [root / path for path in table["path"]], options.threads
        ) as images,
        torch.inference_mode(),
    ):
        file.attrs["backbone"] = config["model"]
        writer = FeatureWriter(file, "train", ids, config["dtype"])
        copies = Copies(images, settings, lambda: SEED)
        order = epoch_order(len(copies), SEED, 0, shuffle=False)
        for batch in tqdm(
            BatchLoader(copies, order, BATCH_SIZE, device),
            desc="features of copies",
            disable=None,
            mininterval=1.0,
        ):
            start = time.perf_counter()
            writer.append({k: v.cpu().numpy() for k, v in backbone(batch[0]).items()})
            seconds += time.perf_counter() - start
    return {"images": len(ids), "backbone_seconds": seconds}


if __name__ == "__main__":
    run("augment", __doc__, body)
