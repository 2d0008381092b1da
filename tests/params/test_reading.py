"""Reading ``params/``: what lies over what, and errors that say where, what and what instead."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from params.reading import ParamsError, known_names, merge, read_config, read_run, read_yaml

ROOT = Path(__file__).resolve().parents[2]
# Reads neither images nor weights: quick, and free of what a machine happens to have.
RANDOM = {"algorithms": ["random"]}


def fails(root: Path, overrides: dict[str, Any] | None = None) -> str:
    """Read a run that must fail, and return what it says."""
    with pytest.raises(ParamsError) as caught:
        read_run(root, overrides)
    return str(caught.value)


class TestMerge:
    """Mappings are laid over one another key by key; all else is replaced."""

    def test_keeps_what_is_not_named(self):
        base = {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": 4}}}
        assert merge(base, {"b": {"d": {"e": 5}}}) == {
            "a": 1,
            "b": {"c": 2, "d": {"e": 5, "f": 4}},
        }

    def test_replaces_lists(self):
        assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}

    def test_replaces_a_mapping_by_null(self):
        assert merge({"a": {"b": 1}}, {"a": None}) == {"a": None}

    def test_replaces_datasets_as_a_whole(self):
        assert merge({"datasets": {"a": "all"}}, {"datasets": {"b": ["c"]}}) == {
            "datasets": {"b": ["c"]}
        }

    def test_leaves_its_arguments_alone(self):
        base: dict[str, Any] = {"a": {"b": 1}}
        merge(base, {"a": {"b": 2}})["a"]["c"] = 3
        assert base == {"a": {"b": 1}}


class TestExtends:
    """A file inherits from another, which may inherit again."""

    def test_chain_of_three(self, root, write):
        write("backbones/one.yaml", {"model": "m1", "dtype": "float16", "weights": {"seed": 1}})
        write("backbones/two.yaml", {"extends": "one", "model": "m2", "weights": {"path": "p"}})
        write("backbones/three.yaml", {"extends": "two", "dtype": "float32"})
        assert read_config(root / "params/backbones", "three") == {
            "model": "m2",
            "dtype": "float32",
            "weights": {"seed": 1, "path": "p"},
        }

    @pytest.mark.parametrize("chain", [["a"], ["a", "b"], ["a", "b", "c"]])
    def test_loop_is_named(self, root, write, chain):
        for name, parent in zip(chain, [*chain[1:], chain[0]], strict=True):
            write(f"backbones/{name}.yaml", {"extends": parent})
        with pytest.raises(ParamsError, match="extends itself") as caught:
            read_config(root / "params/backbones", "a")
        assert " -> ".join([*chain, "a"]) in str(caught.value)

    def test_missing_parent_names_the_child_and_the_nearest(self, root, write):
        child = write("backbones/mine.yaml", {"extends": "resnet_18"})
        with pytest.raises(ParamsError) as caught:
            read_config(root / "params/backbones", "mine")
        assert f"{child}: extends: resnet_18: no file" in str(caught.value)
        assert "did you mean resnet18?" in str(caught.value)

    def test_resolved_file_holds_neither_extends_nor_variants(self, root):
        for name in known_names(root / "params/algorithms"):
            assert not {"extends", "variants"} & set(
                read_config(root / "params/algorithms", name, "cpu")
            )


class TestVariants:
    """A variant is laid on the file that has it; the others keep their values."""

    BASE = {
        "algorithm": "random",
        "batch_size": 8,
        "epochs": 3,
        "variants": {"small": {"epochs": 1}, "empty": None},
    }

    def read(self, root: Path, name: str, variant: str | None) -> dict[str, Any]:
        return read_config(root / "params/algorithms", name, variant)

    def test_lays_over(self, root, write):
        write("algorithms/mine.yaml", self.BASE)
        assert self.read(root, "mine", "small") == {
            "algorithm": "random",
            "batch_size": 8,
            "epochs": 1,
        }

    @pytest.mark.parametrize("variant", [None, "empty", "unknown"])
    def test_else_the_publication_counts(self, root, write, variant):
        write("algorithms/mine.yaml", self.BASE)
        assert self.read(root, "mine", variant)["epochs"] == 3

    def test_is_inherited_and_the_childs_wins(self, root, write):
        write("algorithms/mine.yaml", self.BASE)
        write("algorithms/heir.yaml", {"extends": "mine", "batch_size": 2})
        write(
            "algorithms/rich.yaml",
            {"extends": "mine", "variants": {"small": {"epochs": 9}}},
        )
        assert self.read(root, "heir", "small") == {
            "algorithm": "random",
            "batch_size": 2,
            "epochs": 1,
        }
        assert self.read(root, "rich", "small")["epochs"] == 9

    def test_of_committed_files_are_valid(self, root):
        for variant in (None, "cpu", "demo"):
            names = known_names(root / "params/algorithms")
            run = read_run(root, {"variant": variant, "algorithms": names})
            assert set(run.algorithms) == set(names)
        assert run.algorithms["padim"].backbone == "efficientnet_lite0"
        assert run.algorithms["padim"].parameters["max_features"] == 550
        assert run.algorithms["padim"].parameters["sigma"] == 4.0, "the algorithm's own default"

    def test_must_be_names_and_keys(self, root, write):
        write("algorithms/random.yaml", {"algorithm": "random", "variants": ["small"]})
        assert "random.yaml: variants: expected names and keys" in fails(root, RANDOM)


class TestPrecedence:
    """The command line lies over the preset, the preset over ``benchmark.yaml``."""

    def test_three_layers(self, root, write):
        write("presets/mine.yaml", {"title": "Mine", "datasets": {"demo": ["kit"]}, "seeds": [1, 2],
                                    "budget": {"train_seconds": 7}})  # fmt: skip
        plain = read_run(root, {"preset": "mine"}).benchmark
        assert (plain.seeds, plain.budget.train_seconds) == ([1, 2], 7)
        assert plain.metrics == ["image_auroc", "pixel_auroc", "aupro", "pl"]
        over = read_run(root, {"preset": "mine", "seeds": [5], "protocol": {"crop": 0.5}}).benchmark
        assert (over.seeds, over.budget.train_seconds) == ([5], 7)
        assert (over.protocol.crop, over.protocol.image_size) == (0.5, 256)

    def test_no_preset(self, root):
        overrides = {"preset": None, "title": "T", "datasets": {"demo": "all"}}
        assert read_run(root, overrides).benchmark.title == "T"
        assert "datasets: Field required" in fails(root, {"preset": None, "title": "T"})

    def test_preset_of_the_file(self, root):
        assert list(read_run(root).categories) == ["demo"]

    def test_datasets_are_replaced(self, root, write):
        run = read_run(root, {**RANDOM, "preset": "cpu_real", "datasets": {"mvtec_ad": ["pill"]}})
        assert dict(run.categories) == {"mvtec_ad": ["pill"]}

    def test_presets_extend_presets(self, root, write):
        write("presets/mine.yaml", {"extends": "demo", "seeds": [4]})
        run = read_run(root, {"preset": "mine"})
        assert run.benchmark.seeds == [4]
        assert run.benchmark.title.startswith("Demo")

    def test_unknown_preset(self, root):
        assert "did you mean cpu_real?" in fails(root, {"preset": "cpu_reel"})

    def test_synthetic_images_have_their_place(self, root, write):
        """The rule that draws them knows no other."""
        message = fails(root, {"roots": {"demo": "/data/demo"}})
        assert "demo.yaml: root: " in message
        assert "data/demo" in message
        write("datasets/demo2.yaml", {"extends": "demo", "seed": 1})
        assert "data/demo2" in fails(root, {"datasets": {"demo2": "all"}})
        write("datasets/demo2.yaml", {"extends": "demo", "seed": 1, "root": "data/demo2"})
        assert read_run(root, {"datasets": {"demo2": "all"}}).datasets["demo2"].seed == 1

    def test_roots_move_a_data_set(self, root):
        run = read_run(root, {**RANDOM, "preset": "mvtec", "roots": {"mvtec_ad": "/data/mvtec"}})
        assert run.datasets["mvtec_ad"].root == "/data/mvtec"
        assert "roots: mvtec: no file" in fails(root, {"roots": {"mvtec": "/data"}})


class TestCategories:
    """Categories are those of the data set's file, or the folders below its root."""

    FOLDER = {**RANDOM, "datasets": {"folder": "all"}}

    def run_with(self, root: Path, *names: str, asked: Any = "all") -> list[str]:
        for name in names:
            (root / "images" / name).mkdir(parents=True)
        (root / "images").mkdir(exist_ok=True)
        (root / "images" / "notes.txt").write_text("no category")
        overrides = {**RANDOM, "datasets": {"folder": asked}, "roots": {"folder": "images"}}
        return read_run(root, overrides).categories["folder"]

    def test_are_the_visible_folders(self, root):
        assert self.run_with(root, "nut", "bolt", ".cache") == ["bolt", "nut"]

    def test_keep_the_order_asked_for(self, root):
        assert self.run_with(root, "nut", "bolt", asked=["nut", "bolt"]) == ["nut", "bolt"]

    def test_unknown_category(self, root):
        with pytest.raises(ParamsError, match="no category botl; did you mean bolt?"):
            self.run_with(root, "nut", "bolt", asked=["botl"])

    def test_no_folder_at_all(self, root):
        with pytest.raises(ParamsError, match="holds no category folder"):
            self.run_with(root)

    def test_missing_root(self, root):
        message = fails(root, self.FOLDER)
        assert message == f"datasets.folder: root {root / 'data/folder'} is not a folder"

    @pytest.mark.parametrize("name", ["folder", "mvtec_ad"])  # found in the folder; known before
    def test_root_that_dvc_has_not_pulled(self, root, name):
        (root / "data").mkdir()
        (root / f"data/{name}.dvc").write_text(f"outs: [{{path: {name}}}]\n")
        assert fails(root, {**RANDOM, "datasets": {name: "all"}}) == (
            f"datasets.{name}: root {root / 'data' / name} is not a folder; "
            f"{name}.dvc is there: run dvc pull"
        )

    def test_folder_that_is_no_name(self, root):
        with pytest.raises(ParamsError, match="metal nut: rename it"):
            self.run_with(root, "metal nut", "bolt")

    @pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "", "a b", "a\n", "{x}"])
    def test_names_that_leave_the_folder(self, root, write, name):
        asked = fails(root, {**RANDOM, "datasets": {"mvtec_ad": [name]}})
        assert "datasets.mvtec_ad" in asked
        assert repr(name) in asked
        file = write("datasets/mine.yaml", {"kind": "mvtec", "root": "r", "categories": [name]})
        declared = fails(root, {**RANDOM, "datasets": {"mine": "all"}})
        assert f"{file}: categories.0: String should match pattern" in declared
        assert repr(name) in declared

    @pytest.mark.parametrize("name", ["../demo", "a/b"])
    def test_data_set_and_algorithm_names_too(self, root, name):
        assert repr(name) in fails(root, {"datasets": {name: "all"}})
        assert f"algorithms.0: String should match pattern" in fails(  # noqa: F541
            root, {"algorithms": [name]}
        )


class TestErrors:
    """Each error names the file, the key, the value and the nearest that is known."""

    def test_unknown_key_on_the_command_line(self, root):
        message = fails(root, {"algoritms": ["random"]})
        assert "params/benchmark.yaml" in message
        assert "--config: algoritms: unknown key; did you mean algorithms?" in message

    def test_unknown_key_in_a_preset(self, root, write):
        preset = write("presets/mine.yaml", {"extends": "demo", "seed": [1]})
        message = fails(root, {"preset": "mine"})
        assert str(preset) in message
        assert "seed: unknown key; did you mean seeds?" in message

    def test_unknown_nested_key(self, root):
        message = fails(root, {"protocol": {"imagesize": 128}})
        assert "protocol.imagesize: unknown key; did you mean image_size?" in message

    @pytest.mark.parametrize(
        ("path", "key", "nearest"),
        [
            ("figures.yaml", "colormap", "colour_map"),
            ("metrics.yaml", "per_defect_type", "by_defect_type"),
            ("datasets/demo.yaml", "sizes", "size"),
            ("backbones/efficientnet_lite0.yaml", "layer", "layers"),
            ("algorithms/padim.yaml", "batchsize", "batch_size"),
        ],
    )
    def test_unknown_key_in_a_file(self, root, write, path, key, nearest):
        data = yaml.safe_load((root / "params" / path).read_text())
        file = write(path, {**data, key: 1})
        assert f"{file}: {key}: unknown key; did you mean {nearest}?" in fails(root)

    def test_unknown_nested_key_in_a_file(self, root, write):
        path = "backbones/efficientnet_lite0.yaml"
        data = yaml.safe_load((root / "params" / path).read_text())
        data["weights"]["packages"] = "x"
        file = write(path, data)
        assert f"{file}: weights.packages: unknown key; did you mean package?" in fails(root)

    def test_unknown_algorithm_configuration(self, root):
        message = fails(root, {"algorithms": ["padm"]})
        assert "algorithms: padm: no file" in message
        assert "did you mean padim?" in message

    def test_unknown_algorithm(self, root, write):
        file = write("algorithms/mine.yaml", {"algorithm": "patchcor"})
        message = fails(root, {"algorithms": ["mine"]})
        assert f"{file}: algorithm: patchcor: no " in message
        assert "did you mean patchcore?" in message
        assert re.search(r"known: .*fastflow2d", message)
        assert "base" not in message.split("known:")[1], "only files that register an algorithm"

    def test_unknown_hyperparameter(self, root, write):
        file = write(
            "algorithms/padim.yaml", {"extends": "plain", "parameters": {"max_feature": 3}}
        )
        write("algorithms/plain.yaml", {"algorithm": "padim", "backbone": "efficientnet_lite0",
                                        "layers": ["stride4"]})  # fmt: skip
        message = fails(root, {"algorithms": ["padim"]})
        assert (
            f"{file}: parameters: max_feature: unknown key; did you mean max_features?" in message
        )

    def test_hyperparameter_of_the_wrong_type(self, root, write):
        file = write("algorithms/padim.yaml", {"algorithm": "padim", "layers": ["stride4"],
                     "backbone": "efficientnet_lite0", "parameters": {"sigma": "much"}})  # fmt: skip
        message = fails(root, {"algorithms": ["padim"]})
        assert f"{file}: parameters: sigma: Input should be a valid number" in message
        assert "(given: 'much')" in message

    def test_unknown_metric(self, root):
        message = fails(root, {"metrics": ["image_auc"]})
        assert "metrics: image_auc is unknown; did you mean image_auroc?" in message
        assert "did you mean pl_50?" in fails(root, {"metrics": ["pl_51"]})

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"limmit": 0.3}, "unknown key; did you mean limit?"),
            ({"limit": "low"}, "limit: Input should be a valid number"),
            ({"limit": 3}, "limit must be above 0 and at most 1, got 3"),
        ],
    )
    def test_parameters_of_a_metric(self, root, write, given, message):
        file = write("metrics.yaml", {"parameters": {"aupro": given}})
        found = fails(root, {"metrics": ["aupro"]})
        assert f"{file}: parameters.aupro: " in found
        assert message in found

    def test_a_name_for_an_unknown_metric(self, root, write):
        file = write("metrics.yaml", {"parameters": {"mine": {"metric": "aupor"}}})
        message = fails(root, {"metrics": ["mine"]})
        assert f"{file}: parameters.mine.metric: aupor is unknown; did you mean aupro?" in message

    def test_learning_epochs_ascend(self, root):
        assert "learning_epochs must ascend" in fails(root, {"learning_epochs": [1, 3, 2]})

    def test_unknown_category(self, root):
        message = fails(root, {**RANDOM, "datasets": {"mvtec_ad": ["botle"]}})
        assert "datasets.mvtec_ad: no category botle; did you mean bottle?" in message

    def test_unknown_data_set(self, root):
        assert "did you mean mpdd?" in fails(root, {"datasets": {"mppd": "all"}})

    def test_unknown_kind_of_data_set(self, root, write):
        file = write("datasets/mine.yaml", {"kind": "coco", "root": "r"})
        message = fails(root, {"datasets": {"mine": "all"}})
        assert f"{file}: kind: expected one of demo, mvtec, loco, visa, given: 'coco'" in message

    def test_unknown_backbone_and_layer(self, root, write):
        padim = {"algorithm": "padim", "backbone": "efficientnet_lite", "layers": ["stride4"]}
        write("algorithms/padim.yaml", padim)
        message = fails(root, {"algorithms": ["padim"]})
        assert "algorithms/padim.yaml: backbone: efficientnet_lite: no file" in message
        assert "did you mean efficientnet_lite" in message
        write("algorithms/padim.yaml",
              {**padim, "backbone": "efficientnet_lite0", "layers": ["stride7"]})  # fmt: skip
        message = fails(root, {"algorithms": ["padim"]})
        assert "padim.yaml: layers: stride7 is not a layer of efficientnet_lite0" in message
        assert "known: stride4, stride8, stride16" in message

    def test_features_without_a_backbone(self, root, write):
        write("algorithms/padim.yaml", {"algorithm": "padim"})
        assert "padim reads features: give backbone and layers" in fails(root)

    def test_backbone_without_a_use(self, root, write):
        write("algorithms/random.yaml", {"algorithm": "random", "backbone": "resnet18"})
        assert "random reads images: backbone and layers are unused" in fails(root)

    def test_backbones_of_an_ensemble(self, root, write):
        both = {"algorithm": "padim", "layers": ["stride8"], "backbone": ["resnet18", "vgg16"]}
        write("algorithms/padim.yaml", both)
        run = read_run(root, {"algorithms": ["padim"]})
        assert run.algorithms["padim"].backbones == ["resnet18", "vgg16"]
        assert set(run.backbones) == {"resnet18", "vgg16"}
        write("algorithms/padim.yaml", both | {"layers": ["stride32"]})
        assert "layers: stride32 is not a layer of vgg16" in fails(root, {"algorithms": ["padim"]})
        write("algorithms/padim.yaml", both | {"backbone": []})
        assert "padim.yaml: backbone" in fails(root, {"algorithms": ["padim"]})

    def test_backbones_that_see_other_sizes(self, root, write):
        write("backbones/wide.yaml", {"extends": "resnet18", "image_size": 448})
        both = {"algorithm": "padim", "layers": ["stride8"], "backbone": ["resnet18", "wide"]}
        write("algorithms/padim.yaml", both)
        assert "all must see images of one size" in fails(root, {"algorithms": ["padim"]})

    @pytest.mark.parametrize("changes", [{"layers": []}, {"backbone": ["vgg16", "resnet18"]}])
    def test_what_builds_on_a_backbone_needs_one(self, root, write, changes):
        write(
            "algorithms/mspba.yaml",
            {
                "extends": "random",
                "algorithm": "mspba",
                "backbone": "vgg16",
                "layers": ["stride2"],
                **changes,
            },
        )
        message = fails(root, {"algorithms": ["mspba"]})
        assert "mspba reads images and builds on a backbone: give one, and layers" in message

    @pytest.mark.parametrize(
        ("overrides", "where", "given"),
        [
            ({"seeds": "many"}, "seeds", "'many'"),
            ({"seeds": [-1]}, "seeds.0", "-1"),
            ({"protocol": {"image_size": "big"}}, "protocol.image_size", "'big'"),
            ({"protocol": {"image_size": 8}}, "protocol.image_size", "8"),
            ({"protocol": {"crop": 1.5}}, "protocol.crop", "1.5"),
            ({"device": "gpu"}, "device", "'gpu'"),
            ({"budget": 7}, "budget", "7"),
            ({"checks": {"policy": "ignore"}}, "checks.policy", "'ignore'"),
            ({"page": {"path": "../page.md"}}, "page.path", "'../page.md'"),
        ],
    )
    def test_wrong_type_or_range(self, root, overrides, where, given):
        message = fails(root, overrides)
        assert f"{where}: Input should be" in message or f"{where}: String should" in message
        assert f"(given: {given})" in message

    def test_all_problems_of_a_file_at_once(self, root):
        message = fails(root, {"seed": 1, "device": "gpu", "budget": {"seconds": 1}})
        assert len(message.splitlines()) == 3

    @pytest.mark.parametrize(
        ("overrides", "field", "name"),
        [
            ({"algorithms": ["random", "padim", "random"]}, "algorithms", "random"),
            ({"seeds": [0, 1, 1]}, "seeds", "1"),
            ({"metrics": ["image_auroc", "image_auroc"]}, "metrics", "image_auroc"),
            ({"datasets": {"mvtec_ad": ["pill", "pill"]}}, "datasets.mvtec_ad", "pill"),
        ],
    )
    def test_doubles(self, root, overrides, field, name):
        assert f"{field} names {name} more than once" in fails(root, overrides)

    def test_incomplete_weights(self, root, write):
        write("backbones/efficientnet_lite0.yaml", {"model": "m", "weights": {"source": "file"},
              "layers": {"stride4": 1}, "mean": [0, 0, 0], "std": [1, 1, 1]})  # fmt: skip
        assert "weights with source file need the key path" in fails(root)


class TestYaml:
    """A file is YAML, holds keys and values, and each key once."""

    @pytest.mark.parametrize(
        ("text", "line", "key"),
        [("a: 1\nb: 2\na: 3\n", 3, "a"), ("a:\n  b: 1\n  c: {d: 1, d: 2}\n", 3, "d")],
    )
    def test_doubled_key(self, tmp_path, text, line, key):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        with pytest.raises(ParamsError) as caught:
            read_yaml(path)
        assert str(path) in str(caught.value)
        assert f"line {line}: '{key}' stands twice" in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"a: [1", "not valid YAML"),
            (b"- a\n- b\n", "expected keys and values, found list"),
            (b"just text", "expected keys and values, found str"),
            (b"a: \xff\xfe", "not valid YAML"),
            (b"{{a}}: 1", "not valid YAML"),
            (b"? [a, b]\n: 1", "not valid YAML"),
        ],
    )
    def test_unreadable(self, tmp_path, content, problem):
        path = tmp_path / "x.yaml"
        path.write_bytes(content)
        with pytest.raises(ParamsError) as caught:
            read_yaml(path)
        assert str(caught.value).startswith(f"{path}: {problem}")

    def test_empty_and_missing(self, tmp_path):
        path = tmp_path / "x.yaml"
        path.write_text("# nothing\n")
        assert read_yaml(path) == {}
        with pytest.raises(ParamsError, match="no such file"):
            read_yaml(tmp_path / "y.yaml")

    def test_repeated_values_by_anchor(self, tmp_path):
        path = tmp_path / "x.yaml"
        path.write_text(
            textwrap.dedent("""\
            small: &small {epochs: 1, batch_size: 4}
            other: {<<: *small, epochs: 2}
            """)
        )
        assert read_yaml(path)["other"] == {"epochs": 2, "batch_size": 4}


@pytest.mark.parametrize("preset", known_names(ROOT / "params" / "presets"))
def test_committed_presets_are_valid(preset):
    overrides = {"preset": preset}
    run = read_run(ROOT, overrides)
    assert run.benchmark.title
    assert all(run.categories.values())


class TestMetrics:
    """A run's metrics come with all parameters; one metric may stand under several names."""

    def test_defaults_are_filled_in(self, root, write):
        write("metrics.yaml", {"parameters": {}})
        run = read_run(root, {"metrics": ["aupro", "image_ap"]})
        assert run.metrics["aupro"].model_dump() == {
            "metric": "aupro", "parameters": {"limit": 0.3},
        }  # fmt: skip
        assert run.metrics["image_ap"].parameters == {}
        assert run.by_defect_type

    def test_one_metric_under_two_names(self, root, write):
        write("metrics.yaml", {"parameters": {"strict": {"metric": "aupro", "limit": 0.05}}})
        run = read_run(root, {"metrics": ["aupro", "strict"]})
        assert list(run.metrics) == ["aupro", "strict"]
        assert run.metrics["strict"].metric == "aupro"
        assert run.metrics["strict"].parameters == {"limit": 0.05}
