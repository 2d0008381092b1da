"""Device, threads and seeds of a process."""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np
import torch

from stages.artifacts.files import StageError


def prepare(device: str, threads: int) -> torch.device:
    """Choose the device and make torch deterministic on it.

    Raises
    ------
    StageError
        If CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise StageError("device: cuda, but torch sees no GPU; use device: auto or cpu")
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", claim_slot(torch.cuda.device_count()))
    return torch.device("cpu")


_claimed: list[IO[str]] = []  # open as long as the process lives: closing would free the slot


def claim_slot(count: int, folder: Path | None = None) -> int:
    """Take one of ``count`` devices for this process, waiting until one is free.

    Snakemake only counts GPUs; which one a job gets is decided here, by file locks that a killed
    process cannot leave behind.
    """
    folder = folder or Path(tempfile.gettempdir())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all").replace(",", "-")
    while True:
        for number in range(count):
            file = (folder / f"visionad-gpu-{visible}-{number}.lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            _claimed.append(file)
            return number
        time.sleep(0.5)


def seed_everything(seed: int, epoch: int) -> None:
    """Seed torch, NumPy and random for one epoch, so that a resumed epoch draws the same."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
