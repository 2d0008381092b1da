"""Device, threads and seeds of a process."""

from __future__ import annotations

import os
import random

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
    use_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def seed_everything(seed: int, epoch: int) -> None:
    """Seed torch, NumPy and random for one epoch, so that a resumed epoch draws the same."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
