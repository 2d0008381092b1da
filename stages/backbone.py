"""Pretrained backbones: a timm model cut at some layers, with weights from a named source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.hrnet import HighResolutionNetFeatures
from torch import Tensor, nn

from stages.artifacts.files import StageError
from stages.artifacts.weights import read_state_dict, weights_path

# EfficientNet-PyTorch's names -> timm's, for the first block of a stage 0 and for all others.
SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def timm_keys(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename an EfficientNet-PyTorch state dict to timm's names.

    Block numbers are flat there; timm's are (stage, block), in the same order.
    """
    pattern = re.compile(r"blocks\.(\d+)\.(\d+)\.")
    matches = [pattern.match(key) for key in model.state_dict()]
    blocks = list(dict.fromkeys((m[1], m[2]) for m in matches if m))
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            number = int(parts[1])
            if number >= len(blocks):  # of a stage that the cut model does not have
                continue
            inside = SEPARABLE if number == 0 else INVERTED
            stage, block = blocks[number]
            renamed[".".join(["blocks", stage, block, inside[parts[2]], *parts[3:]])] = value
        else:
            renamed[".".join([OUTER[parts[0]], *parts[1:]])] = value
    return renamed


def load_weights(model: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    """Load a state dict into a (possibly cut) model; keys it lacks are dropped, none may miss.

    Raises
    ------
    StageError
        If the file is no state dict, or lacks parameters of the model.
    """
    state = read_state_dict(path)
    if weights["keys"] == "efficientnet_pytorch":
        try:
            state = timm_keys(state, model)
        except KeyError as error:
            raise StageError(f"{path}: not EfficientNet-PyTorch's keys: {error} is none") from None
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    if missing:
        raise StageError(
            f"{path}: not the weights of this model: {len(missing)} parameters are missing, "
            f"e.g. {missing[0]}"
        )
    try:
        model.load_state_dict({key: state.get(key, value) for key, value in wanted.items()})
    except RuntimeError as error:  # shapes differ
        raise StageError(f"{path}: not the weights of this model: {error}") from None


def reflect_padding(model: nn.Module) -> None:
    """Make every padded convolution repeat the image mirrored instead of zeros."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            if type(module) is not nn.Conv2d:
                raise StageError(f"padding: reflect does not work with {type(module).__name__}")
            module.padding_mode = "reflect"


def cut(model: nn.Module, last_stage: int | None) -> None:
    """Leave out what comes after the last layer.

    timm's EfficientNets would compute further stages, its HRNets the classifier's first layers,
    which widen the branches fourfold. With ``last_stage``, an EfficientNet also loses the stages
    after that one, so that the last layer is its output.
    """
    if isinstance(model, EfficientNetFeatures):
        stages = [int(name.split(".")[1]) for name in model.feature_info.module_name()]
        model.blocks = model.blocks[: stages[-1] + 1]
        if last_stage is not None:
            if any(last_stage <= stage for stage in stages[:-1]):
                raise StageError(f"last_stage: {last_stage}: layers need the stages {stages[:-1]}")
            for number in range(last_stage + 1, len(model.blocks)):
                model.blocks[number] = nn.Identity()
    elif last_stage is not None:
        raise StageError(f"last_stage does not work with {type(model).__name__}")
    if isinstance(model, HighResolutionNetFeatures):
        model.incre_modules = None


def network(config: Mapping[str, Any], layers: list[str]) -> nn.Module:
    """Make a frozen network, to build on: images (N, 3, H, W) -> [(N, C, h, w)], by layer."""
    chosen = {name: config["layers"][name] for name in layers}
    return Backbone({**config, "layers": chosen}).model


class Backbone(nn.Module):
    """Frozen feature extractor: images (N, 3, H, W) -> {layer: (N, C, h, w)}."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        weights = config["weights"]
        path = weights_path(weights)
        self.names = list(config["layers"])
        self.reduction, self.scale = config["reduction"], config["scale"]
        if weights["source"] == "random":
            torch.manual_seed(weights["seed"])
        try:
            self.model = timm.create_model(
                config["model"],
                features_only=True,
                out_indices=tuple(config["layers"].values()),
                pretrained=weights["source"] == "timm",
            )
        except Exception as error:  # the hub's client has many ways to fail
            raise StageError(
                f"backbone {config['model']}: cannot be made, or its weights cannot be fetched "
                f"({error}); offline, use weights with source: file or package"
            ) from error
        if path is not None:
            load_weights(self.model, weights, path)
        cut(self.model, config.get("last_stage"))
        if config["padding"] == "reflect":
            reflect_padding(self.model)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.model(images)
        if self.reduction > 1:
            features = [nn.functional.avg_pool2d(layer, self.reduction) for layer in features]
        if self.scale != 1:
            features = [layer * self.scale for layer in features]
        return dict(zip(self.names, features, strict=True))
