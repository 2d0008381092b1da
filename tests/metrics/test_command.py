"""The command ``visionad-metrics``, from files to JSON and CSV."""

import csv
import io
import json
import subprocess
import sys
from importlib.metadata import version

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

import visionad_metrics
from stages.artifacts.images import evaluation_mask
from stages.artifacts.maps import write_maps
from stages.evaluate import resize_maps
from visionad_metrics import MetricResult, registry
from visionad_metrics.command import DEFAULT_METRICS, main, parse_metric

METRICS = ["image_auroc", "pixel_auroc", "aupro"]
IDS = [f"test/good/{n:03}" for n in range(3)] + [f"test/scratch/{n:03}" for n in range(4)]


@pytest.fixture
def arrays(rng):
    """Maps (7, 24, 20) float32 and masks (7, 40, 32) uint8 of grey values; three are good."""
    maps = rng.normal(size=(7, 24, 20)).astype(np.float32)
    masks = np.zeros((7, 40, 32), np.uint8)
    for row in range(3, 7):
        masks[row, 5 * row : 5 * row + 4, 10:20] = 20 * row
        maps[row, 3 * row : 3 * row + 3, 6:13] += 1
    return maps, masks


@pytest.fixture
def run(capsys):
    """Run the command with three metrics and return its JSON report."""

    def run(*arguments, metrics=METRICS):
        code = main([*map(str, arguments), "--metrics", *metrics])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(said.out)

    return run


@pytest.fixture
def fails(capsys):
    """Run the command, which must end with one line, and return that line."""

    def fails(*arguments):
        assert main([*map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("visionad-metrics: error: ")
        assert said.err.count("\n") == 1
        return said.err

    return fails


def write_folders(folder, maps, masks):
    """Write TIFF maps and PNG masks as MVTec lays them out; good images have no mask."""
    for one, array, mask in zip(IDS, maps, masks, strict=True):
        path = folder / "maps" / f"{one}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, array)
        if mask.any():
            path = folder / "truth" / f"{one.removeprefix('test/')}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return folder / "maps", folder / "truth"


def write_arrays(folder, maps, masks):
    np.save(folder / "maps.npy", maps)
    np.save(folder / "masks.npy", masks)
    return folder / "maps.npy", folder / "masks.npy"


def in_pipeline(maps, masks, size, scores=None):
    """Compute the metrics as the benchmark's evaluation does."""
    maps_there = resize_maps(maps, size)
    masks_there = np.stack([evaluation_mask(mask > 0, size, 1.0) for mask in masks])
    scores = maps.max(axis=(1, 2)) if scores is None else scores
    labels = masks.any(axis=(1, 2))
    return {
        name: visionad_metrics.compute(name, maps_there, masks_there, scores, labels).value
        for name in METRICS
    }


def values(report):
    return {name: metric["value"] for name, metric in report["metrics"].items()}


class TestValues:
    """Each form of input gives the very number that the library and the pipeline give."""

    def test_arrays_of_one_size(self, tmp_path, arrays, run):
        maps, masks = arrays[0].astype(np.float64), arrays[1][:, ::2, ::2][:, :, :16]
        maps = maps[:, :20, :16] * (1 + 1e-12)
        report = run(*write_arrays(tmp_path, maps, masks))
        assert report["metrics"]["pixel_auroc"]["value"] == (
            visionad_metrics.pixel_auroc(maps, masks > 0).value
        )
        assert report["metrics"]["image_auroc"]["value"] == (
            visionad_metrics.image_auroc(maps.max(axis=(1, 2)), masks.any(axis=(1, 2))).value
        )

    @pytest.mark.parametrize("size", [16, 24, 64])
    @pytest.mark.parametrize("write", [write_arrays, write_folders])
    def test_size_is_the_pipelines(self, tmp_path, arrays, run, size, write):
        report = run(*write(tmp_path, *arrays), "--size", size)
        assert values(report) == in_pipeline(*arrays, size)
        assert report["image_size"] == [size, size]

    @pytest.mark.parametrize("write", [write_arrays, write_folders])
    def test_without_size_maps_are_brought_to_the_masks(self, tmp_path, arrays, run, write):
        report = run(*write(tmp_path, *arrays))
        maps = [
            Image.fromarray(one).resize((32, 40), Image.Resampling.BILINEAR) for one in arrays[0]
        ]
        expected = visionad_metrics.compute("aupro", np.stack(maps), arrays[1] > 0, None, None)
        assert report["metrics"]["aupro"]["value"] == expected.value
        assert report["image_size"] == [40, 32]
        assert (report["images"], report["good_images"], report["defective_images"]) == (7, 3, 4)

    @pytest.mark.parametrize("method", [None, "near", "far"])
    def test_results_of_the_pipeline(self, tmp_path, arrays, rng, run, method):
        maps, masks = arrays
        order = rng.permutation(7)
        scores = {"near": rng.normal(size=7), "far": rng.normal(size=7)}
        write_maps(
            tmp_path / "seed0.h5",
            [IDS[row] for row in order],
            {"near": maps[order], "far": -maps[order]},
            {name: one[order] for name, one in scores.items()},
            ("near", "far"),
        )
        _, truth = write_folders(tmp_path, maps, masks)
        chosen = [] if method is None else ["--method", method]
        report = run(tmp_path / "seed0.h5", truth, "--size", 32, *chosen)
        of_maps, of_scores = method or "near", method or "far"
        assert report["methods"] == {"maps": of_maps, "scores": of_scores}
        signed = maps if of_maps == "near" else -maps
        assert values(report) == in_pipeline(signed, masks, 32, scores[of_scores])
        assert report["scores"] == "given"

    def test_a_method_of_scores_alone_goes_with_the_primary_maps(self, tmp_path, arrays, run):
        maps, masks = arrays
        scores = {"max": np.zeros(7), "mean": np.arange(7.0)}
        write_maps(tmp_path / "m.h5", IDS, {"near": maps}, scores, ("near", "max"))
        report = run(tmp_path / "m.h5", write_arrays(tmp_path, maps, masks)[1], "--method", "mean")
        assert report["methods"] == {"maps": "near", "scores": "mean"}
        assert report["metrics"]["image_auroc"]["value"] == 1

    def test_one_hdf5_file_of_everything(self, tmp_path, arrays, run):
        with h5py.File(tmp_path / "all.h5", "w") as file:
            file["maps"], file["masks"] = arrays
        report = run(tmp_path / "all.h5", tmp_path / "all.h5", "--size", 16)
        assert values(report) == in_pipeline(*arrays, 16)

    def test_given_scores_and_labels_count(self, tmp_path, arrays, run):
        maps, masks = arrays
        labels = [0, 0, 1, 1, 1, 1, 1]  # one defect that nobody marked
        np.savez(tmp_path / "maps.npz", maps=maps, scores=np.arange(7), labels=labels)
        report = run(tmp_path / "maps.npz", write_arrays(tmp_path, maps, masks)[1])
        assert (report["scores"], report["labels"]) == ("given", "given")
        assert (report["good_images"], report["defective_images"]) == (2, 5)
        assert report["metrics"]["image_auroc"]["value"] == 1

    def test_image_scores_do_not_depend_on_the_size(self, tmp_path, arrays, run):
        paths = write_arrays(tmp_path, *arrays)
        small, large = (run(*paths, "--size", size) for size in (4, 64))
        assert small["metrics"]["image_auroc"] == large["metrics"]["image_auroc"]


class TestOutput:
    """What is written, and where."""

    @pytest.fixture
    def paths(self, tmp_path, arrays):
        return [str(path) for path in write_arrays(tmp_path, *arrays)]

    def test_json(self, paths, run):
        report = run(*paths, metrics=["aupro", "aupro:limit=0.05"])
        assert report["maps"] == paths[0] and report["masks"] == paths[1]
        assert report["scores"] == "maximum of the map"
        assert report["labels"] == "from the masks"
        assert report["version"] == version("visionad-metrics")
        assert list(report["metrics"]) == ["aupro", "aupro:limit=0.05"]
        wide, narrow = report["metrics"].values()
        assert wide["parameters"] == {} and narrow["parameters"] == {"limit": 0.05}
        assert narrow["value"] < wide["value"]
        assert wide["details"]["regions"] == 4
        assert wide["reason"] is None and "curve" not in wide

    def test_curves(self, paths, run):
        curve = run(*paths, "--curves")["metrics"]["pixel_auroc"]["curve"]
        assert curve["fpr"][0] == 0 and curve["tpr"][-1] == 1
        assert len(curve["fpr"]) == len(curve["tpr"])

    def test_csv(self, paths, capsys):
        metrics = ["image_auroc", "aupro:limit=0.05"]
        assert main([*paths, "--format", "csv", "--metrics", *metrics]) == 0
        said = capsys.readouterr()
        rows = list(csv.DictReader(io.StringIO(said.out)))
        assert list(rows[0]) == ["metric", "value", "reason", "parameters"]
        assert [row["metric"] for row in rows] == metrics
        assert 0 < float(rows[0]["value"]) <= 1
        assert json.loads(rows[1]["parameters"]) == {"limit": 0.05}
        assert said.err == "visionad-metrics: image scores: maximum of the map\n"

    def test_undefined_is_null_with_a_reason(self, tmp_path, arrays, run, capsys):
        paths = [str(path) for path in write_arrays(tmp_path, arrays[0], 0 * arrays[1])]
        metrics = run(*paths)["metrics"]
        assert metrics["image_auroc"]["value"] is None
        assert metrics["image_auroc"]["reason"] == "no defective image"
        assert main([*paths, "--format", "csv", "--metrics", "aupro"]) == 0
        assert capsys.readouterr().out.splitlines()[1] == "aupro,,no anomalous pixel,{}"

    def test_file(self, tmp_path, paths, run, capsys):
        output = tmp_path / "out.json"
        output.write_text("old")
        assert main([*paths, "--output", str(output), "--metrics", *METRICS]) == 0
        assert capsys.readouterr() == ("", "")
        assert json.loads(output.read_text()) == run(*paths)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "maps.npy", "masks.npy", "out.json",
        ]  # fmt: skip

    def test_whatever_a_metric_returns_becomes_json(self, paths, run, monkeypatch):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))

        @visionad_metrics.register("mine", level="image")
        def mine(samples, **parameters):
            numbers = {"a": np.float32(0.5), "b": (np.int64(2), np.nan), 3: np.arange(2)}
            return MetricResult(np.float64(0.25), None, None, {**numbers, "got": parameters})

        metric = run(*paths, metrics=["mine:x=1,y=true,z=abc"])["metrics"]["mine:x=1,y=true,z=abc"]
        got = {"x": 1, "y": True, "z": "abc"}
        assert metric["details"] == {"a": 0.5, "b": [2, None], "3": [0, 1], "got": got}
        assert metric["value"] == 0.25

    def test_as_a_process(self, paths):
        command = [sys.executable, "-m", "visionad_metrics.command"]
        done = subprocess.run(
            [*command, *paths, "--metrics", "image_auroc"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)["images"] == 7
        wrong = subprocess.run([*command, paths[0], "none"], capture_output=True, text=True)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr.startswith("visionad-metrics: error: ")
        assert "torch" not in done.stderr + wrong.stderr

    def test_does_not_import_torch_or_the_benchmark(self, paths):
        code = (
            "import sys; from visionad_metrics.command import main; main(sys.argv[1:]); "
            "print([m for m in ('torch', 'h5py', 'stages') if m in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *paths, "--metrics", *METRICS],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr.strip() == "[]"

    def test_help_has_examples_and_every_metric(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        text = capsys.readouterr().out
        assert "visionad-metrics maps.npy masks.npy" in text
        assert ", ".join(visionad_metrics.names()) in text


class TestErrors:
    """An error is one line, the exit code 2, and nothing is written."""

    @pytest.mark.parametrize(
        ("metric", "message"),
        [
            ("image_auc", "no metric is named 'image_auc'; did you mean 'image_auroc'?"),
            ("image_auroc:limit=0.3", "metric 'image_auroc' got an unexpected keyword"),
            ("aupro:limit=2", "limit must be above 0 and at most 1, got 2"),
            ("aupro:limit=wide", "limit must be a number, got 'wide'"),
            ("aupro:limit", "should be name or name:key=value,key=value"),
            ("aupro:", "should be name or name:key=value,key=value"),
            ("aupro:limit=1,limit=1", "should be name or name:key=value,key=value"),
        ],
    )
    def test_metrics(self, tmp_path, arrays, fails, metric, message):
        paths = write_arrays(tmp_path, *arrays)
        output = tmp_path / "out.json"
        assert message in fails(*paths, "--output", output, "--metrics", "image_auroc", metric)
        assert not output.exists()
        assert len(list(tmp_path.iterdir())) == 2

    def test_an_unknown_metric_is_found_before_reading(self, fails):
        assert "no metric is named 'none'" in fails("a.npy", "b.npy", "--metrics", "none")

    def test_files(self, tmp_path, arrays, fails):
        maps, masks = write_arrays(tmp_path, *arrays)
        folder, truth = write_folders(tmp_path, *arrays)
        metrics = ["--metrics", *METRICS]
        assert "none: no such file" in fails(tmp_path / "none", masks, *metrics)
        assert "none: no such file" in fails(maps, tmp_path / "none", *metrics)
        assert "without ids" in fails(maps, truth, *metrics)
        assert "its maps are of no method" in fails(maps, masks, "--method", "near", *metrics)
        assert "no methods" in fails(folder, truth, "--method", "near", *metrics)
        (truth / "scratch" / "002_mask.png").unlink()
        assert "scratch/002_mask.png" in fails(folder, truth, *metrics)
        np.save(maps, np.where(arrays[0] > 2, np.nan, arrays[0]))
        assert "must be finite" in fails(maps, masks, *metrics)
        assert "must be finite" in fails(maps, masks, "--size", 8, *metrics)

    def test_methods_of_results(self, tmp_path, arrays, fails):
        maps, masks = arrays
        path = tmp_path / "m.h5"
        write_maps(path, IDS, {"near": maps}, {"far": maps.max(axis=(1, 2))}, ("near", "far"))
        _, truth = write_arrays(tmp_path, maps, masks)
        message = fails(path, truth, "--method", "none", "--metrics", "aupro")
        assert "m.h5: no method 'none'; it holds near, far" in message
        with h5py.File(path, "a") as file:
            del file.attrs["primary_score"]
        assert "no attribute 'primary_score'" in fails(path, truth, "--metrics", "aupro")

    def test_damage_is_found_while_reading(self, tmp_path, arrays, fails):
        maps, masks = arrays
        path = tmp_path / "m.h5"
        write_maps(path, IDS, {"near": maps}, {"near": np.zeros(7)}, ("near", "near"))
        with h5py.File(path) as file:
            place = file["maps/near"].id.get_chunk_info(4).byte_offset
        damaged = bytearray(path.read_bytes())
        damaged[place + 40] ^= 255
        path.write_bytes(damaged)
        _, truth = write_arrays(tmp_path, maps, masks)
        assert "m.h5: " in fails(path, truth, "--metrics", "aupro")

    def test_output(self, tmp_path, arrays, fails):
        paths = write_arrays(tmp_path, *arrays)
        assert "no such folder" in fails(*paths, "--output", tmp_path / "none" / "out.json")
        message = fails(*paths, "--output", tmp_path, "--metrics", "image_auroc")
        assert str(tmp_path) in message
        assert not list(tmp_path.parent.glob(".*tmp"))
        assert "CSV holds no curves" in fails(*paths, "--curves", "--format", "csv")

    @pytest.mark.parametrize(
        "arguments", [[], ["m", "m", "--size", "0"], ["m", "m", "--size", "x"]]
    )
    def test_arguments(self, arguments, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "visionad-metrics: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("m", {}),
        ("m:a=1", {"a": 1}),
        ("m:a=0.05, b=-2", {"a": 0.05, "b": -2}),
        ("m:a=true,b=false,c=True", {"a": True, "b": False, "c": True}),
        ("m:a=1e-3,b=word,c='1',d=a=b", {"a": 1e-3, "b": "word", "c": "1", "d": "a=b"}),
    ],
)
def test_parameters_of_metrics(text, parameters):
    assert parse_metric(text) == ("m", parameters)


@pytest.mark.skipif("pl" not in visionad_metrics.names(), reason="pl is not there yet")
def test_default_metrics(tmp_path, arrays, capsys):
    assert main([str(path) for path in write_arrays(tmp_path, *arrays)]) == 0
    assert list(json.loads(capsys.readouterr().out)["metrics"]) == list(DEFAULT_METRICS)
