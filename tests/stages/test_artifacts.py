"""Files are whole or absent, and a damaged one is named, never read as other data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

from stages.artifacts import files, provenance
from stages.artifacts.features import FeatureReader, FeatureWriter
from stages.artifacts.files import StageError, atomic_path, read_json, remove, write_json
from stages.artifacts.hdf5 import create_array, open_hdf5, read_strings, write_strings
from stages.artifacts.index import COLUMNS, read_index, usable, write_index
from stages.artifacts.job import Job, read_job
from stages.artifacts.maps import read_info, read_maps, read_scores, write_maps

RNG = np.random.default_rng(0)
FEATURES = {
    "fine": RNG.normal(size=(7, 3, 8, 6)).astype(np.float16).astype(np.float32),
    "coarse": RNG.normal(size=(7, 5, 4, 3)).astype(np.float16).astype(np.float32),
}
IDS = [f"train/good/{number}ä" for number in range(7)]
MAPS = {"a": RNG.normal(size=(5, 32, 48)).astype(np.float32), "b": np.zeros((5, 8, 8), np.float32)}
SCORES = {"s": RNG.normal(size=5)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_features(path: Path, dtype: str = "float16") -> Path:
    with h5py.File(path, "w") as file:
        writer = FeatureWriter(file, "train", IDS, dtype)
        for rows in (slice(0, 4), slice(4, 7)):
            writer.append({name: array[rows] for name, array in FEATURES.items()})
        FeatureWriter(file, "test", [], dtype)
    return path


class Interrupted(BaseException):
    """What stops a process between two steps."""


class TestAtomicFile:
    """A file takes its place when the block ends well, and else nothing changes."""

    def test_replaces(self, tmp_path):
        path = tmp_path / "new" / "x.txt"
        for text in ("one", "two"):
            with atomic_path(path) as temporary:
                temporary.write_text(text)
                assert temporary.parent == path.parent
                assert not path.exists() or path.read_text() != text
            assert path.read_text() == text
        assert names(path.parent) == ["x.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_failure_leaves_the_old(self, tmp_path, error):
        path = tmp_path / "x.txt"
        path.write_text("old")
        with pytest.raises(error), atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error
        assert path.read_text() == "old"
        assert names(tmp_path) == ["x.txt"]

    def test_leftovers_of_killed_runs_go_and_others_stay(self, tmp_path):
        (tmp_path / ".x.txt.tmp-1").write_text("half")
        (tmp_path / ".x.txt.tmp-2").mkdir()
        (tmp_path / ".y.txt.tmp-1").write_text("another's")
        with atomic_path(tmp_path / "x.txt") as temporary:
            temporary.write_text("whole")
        assert names(tmp_path) == [".y.txt.tmp-1", "x.txt"]

    def test_is_flushed_before_it_takes_its_place(self, tmp_path, monkeypatch):
        steps = []
        monkeypatch.setattr(files.os, "fsync", lambda descriptor: steps.append("fsync"))
        replace = os.replace
        monkeypatch.setattr(files.os, "replace", lambda *a: (steps.append("replace"), replace(*a)))
        files.write_text(tmp_path / "x", "text")
        assert steps == ["fsync", "replace", "fsync"]


class TestAtomicFolder:
    """A folder too is the old one, the new one or absent: never a part of one."""

    def write(self, path: Path, *parts: str) -> None:
        with atomic_path(path) as temporary:
            temporary.mkdir()
            for part in parts:
                (temporary / part).write_text(part)

    def test_replaces_as_a_whole(self, tmp_path):
        path = tmp_path / "model"
        self.write(path, "a", "b")
        self.write(path, "c")
        assert names(path) == ["c"]
        assert names(tmp_path) == ["model"]

    def test_replaces_a_file_and_is_replaced_by_one(self, tmp_path):
        path = tmp_path / "model"
        self.write(path, "a")
        with atomic_path(path) as temporary:
            temporary.write_text("file")
        assert path.read_text() == "file"

    def test_failure_leaves_the_old(self, tmp_path):
        path = tmp_path / "model"
        self.write(path, "a", "b")
        with pytest.raises(ValueError, match="x"), atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / "c").write_text("c")
            raise ValueError("x")
        assert names(path) == ["a", "b"]
        assert names(tmp_path) == ["model"]

    def test_kill_while_the_old_goes_leaves_no_part_of_it(self, tmp_path, monkeypatch):
        path = tmp_path / "model"
        self.write(path, "a", "b")

        def half(folder, *arguments, **options):
            (Path(folder) / "a").unlink()
            raise Interrupted

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", half)
            with pytest.raises(Interrupted):
                self.write(path, "c", "d")
        assert not path.exists() or names(path) in (["a", "b"], ["c", "d"])
        self.write(path, "e")
        assert names(path) == ["e"]
        assert names(tmp_path) == ["model"]


class TestRemove:
    """Files and folders go; what a link points to stays."""

    def test_kinds(self, tmp_path):
        (tmp_path / "target").mkdir()
        (tmp_path / "target/file").touch()
        (tmp_path / "link").symlink_to("target")
        (tmp_path / "folder/inner").mkdir(parents=True)
        (tmp_path / "file").touch()
        for name in ("link", "folder", "file", "absent"):
            remove(tmp_path / name)
        assert names(tmp_path) == ["target"]
        assert names(tmp_path / "target") == ["file"]


class TestJson:
    """JSON has no nan, and a broken file is named."""

    def test_round_trip(self, tmp_path):
        data = {"a": [1, 2.5, None, "ü"], "b": {}}
        write_json(tmp_path / "x.json", data)
        assert read_json(tmp_path / "x.json") == data

    def test_nan_is_refused_and_leaves_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(tmp_path / "x.json", {"a": float("nan")})
        assert names(tmp_path) == []

    @pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
    def test_broken(self, tmp_path, content):
        path = tmp_path / "x.json"
        path.write_bytes(content)
        with pytest.raises(StageError, match="not JSON .*; delete it and run snakemake again") as e:
            read_json(path)
        assert str(path) in str(e.value)

    def test_missing(self, tmp_path):
        with pytest.raises(StageError, match=r"x\.json: no such file; run snakemake to make it"):
            read_json(tmp_path / "x.json")


class TestJobFile:
    """A stage refuses the job of another stage."""

    def test_wrong_stage(self, tmp_path):
        write_json(tmp_path / "x.json", {"stage": "train"})
        with pytest.raises(StageError, match="x.json: a job of stage 'train', expected 'predict'"):
            read_job(tmp_path / "x.json", "predict")


class TestDamagedHdf5:
    """Damage is a StageError that names the file, at opening or at reading."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "maps.h5"
        write_maps(path, [f"i{number}" for number in range(5)], MAPS, SCORES, ("a", "s"))
        return path

    def read(self, path: Path) -> None:
        info = read_info(path)
        for method in info.map_methods:
            np.testing.assert_array_equal(read_maps(path, method), MAPS[method])
        np.testing.assert_array_equal(read_scores(path, "s"), SCORES["s"])

    @pytest.mark.parametrize("share", [0, 0.01, 0.25, 0.5, 0.9, 0.999])
    def test_truncated(self, path, share):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(StageError, match="truncated or damaged HDF5 file") as caught:
            self.read(path)
        assert str(path) in str(caught.value)
        assert "delete it and run snakemake again" in str(caught.value)

    def test_missing(self, tmp_path):
        with pytest.raises(StageError, match=r"x\.h5: no such file; run snakemake"):
            read_info(tmp_path / "x.h5")

    def flip(self, path: Path, needle: bytes, offset: int = 0) -> None:
        content = bytearray(path.read_bytes())
        place = content.find(needle)
        assert place >= 0
        content[place + offset] ^= 0x10
        path.write_bytes(content)

    def chunk(self, path: Path, name: str, row: int) -> bytes:
        with h5py.File(path) as file:
            return file[name].id.read_direct_chunk((row, 0, 0))[1]

    @pytest.mark.parametrize("row", [0, 3])
    def test_flipped_byte_in_a_chunk(self, path, row):
        chunk = self.chunk(path, "maps/a", row)
        self.flip(path, chunk, offset=len(chunk) // 2)
        with pytest.raises(StageError, match="truncated or damaged HDF5 file"):
            read_maps(path, "a")
        with pytest.raises(StageError, match="damaged"):
            read_maps(path, "a", np.array([row]))
        np.testing.assert_array_equal(read_maps(path, "a", np.array([1])), MAPS["a"][1:2])

    @pytest.mark.parametrize("name", ["maps/a", "maps/b", "scores/s"])
    def test_no_value_changes_silently(self, path, name):
        """Whatever byte of an array is flipped, reading it is an error."""
        with h5py.File(path) as file:
            array = file[name].id
            places = [
                (info.byte_offset, info.size)
                for info in map(array.get_chunk_info, range(array.get_num_chunks()))
            ] if file[name].chunks else [(array.get_offset(), array.get_storage_size())]  # fmt: skip
        content = path.read_bytes()
        for start, size in places:
            for place in (start, start + size // 2, start + size - 1):
                flipped = bytes([content[place] ^ 0x40])
                path.write_bytes(content[:place] + flipped + content[place + 1 :])
                with pytest.raises(StageError, match=r"maps\.h5: truncated or damaged"):
                    self.read(path)

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_features(self, tmp_path, share):
        """Also when the split is loaded whole, before the first batch."""
        path = write_features(tmp_path / "features.h5")
        with h5py.File(path) as file:
            chunk = file["train/fine"].id.read_direct_chunk((2, 0, 0, 0))[1]
        self.flip(path, chunk, offset=5)

        def read() -> None:
            with FeatureReader(path, "train", ["fine"], memory_share=share) as reader:
                reader.read(np.arange(7))

        with pytest.raises(StageError, match=r"features\.h5: truncated or damaged HDF5 file"):
            read()

    def test_other_errors_are_not_blamed_on_the_file(self, tmp_path):
        """What an algorithm raises while a file is open says nothing about the file."""
        path = write_features(tmp_path / "features.h5")
        for error in (RuntimeError("CUDA out of memory"), OSError(28, "No space left on device")):
            with (
                pytest.raises(type(error)) as caught,
                FeatureReader(path, "train", ["fine"]) as reader,
            ):
                reader.read(np.arange(2))
                raise error
            assert caught.value is error


class TestHdf5:
    """Arrays are compressed, checksummed and chunked by image."""

    def test_layout(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            array = create_array(file, "x", (4, 3, 2), "float16")
            empty = create_array(file, "empty", (0, 3, 2), "float16")
            assert array.chunks == (1, 3, 2)
            assert (array.compression, array.shuffle, array.fletcher32) == ("lzf", True, True)
            assert empty.shape == (0, 3, 2)

    def test_strings(self, tmp_path):
        for values in (["a/ü/0", "", "日本"], []):
            with h5py.File(tmp_path / "x.h5", "w") as file:
                write_strings(file, "ids", values)
            with open_hdf5(tmp_path / "x.h5") as file:
                assert read_strings(file, "ids") == values


class TestFeatures:
    """What was written in batches is read in any order, from memory or from the file."""

    @pytest.mark.parametrize("share", [0.0, 1.0])
    @pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5, 6], [5, 0, 3, 6], [4], [6, 5, 4, 3]])
    def test_round_trip(self, tmp_path, share, rows):
        path = write_features(tmp_path / "features.h5")
        with FeatureReader(path, "train", ["coarse", "fine"], memory_share=share) as reader:
            assert all(isinstance(array, np.ndarray) == (share > 0) for array in reader._arrays)
            coarse, fine = reader.read(np.array(rows))
            assert reader.shapes == ((5, 4, 3), (3, 8, 6))
            assert (len(reader), reader.ids) == (7, IDS)
        assert (coarse.dtype, fine.dtype) == (np.float32, np.float32)
        np.testing.assert_array_equal(coarse, FEATURES["coarse"][rows])
        np.testing.assert_array_equal(fine, FEATURES["fine"][rows])

    def test_empty_split(self, tmp_path):
        path = write_features(tmp_path / "features.h5")
        with FeatureReader(path, "test", ["fine"]) as reader:
            assert len(reader) == 0

    def test_unknown_layer(self, tmp_path):
        path = write_features(tmp_path / "features.h5")
        with pytest.raises(StageError, match="no layer stride4; it holds coarse, fine"):
            FeatureReader(path, "train", ["stride4"])

    @pytest.mark.parametrize("value", [7e4, np.inf, np.nan])
    def test_overflow(self, tmp_path, value):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            writer = FeatureWriter(file, "train", ["a"], "float16")
            with (
                np.errstate(over="ignore"),
                pytest.raises(StageError, match="layer fine: .* use dtype: float32"),
            ):
                writer.append({"fine": np.full((1, 1, 2, 2), value, np.float32)})

    def test_float32_keeps_large_values(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            writer = FeatureWriter(file, "train", ["a"], "float32")
            writer.append({"fine": np.full((1, 1, 2, 2), 7e4, np.float32)})
        with FeatureReader(tmp_path / "x.h5", "train", ["fine"]) as reader:
            assert reader.read(np.array([0]))[0].max() == 7e4


class TestMaps:
    """Maps, scores and ids come back as they were, in float32 and float64."""

    def test_round_trip(self, tmp_path):
        path, ids = tmp_path / "maps.h5", [f"test/good/{number}" for number in range(5)]
        write_maps(path, ids, MAPS, SCORES, ("a", "s"))
        info = read_info(path)
        assert (info.ids, info.map_methods, info.score_methods) == (ids, ["a", "b"], ["s"])
        assert (info.primary_map, info.primary_score) == ("a", "s")
        assert read_maps(path, "a").dtype == np.float32
        np.testing.assert_array_equal(read_maps(path, "a"), MAPS["a"])
        rows = np.array([3, 0, 3])
        np.testing.assert_array_equal(read_maps(path, "a", rows), MAPS["a"][rows])
        assert read_scores(path, "s").dtype == np.float64
        np.testing.assert_array_equal(read_scores(path, "s"), SCORES["s"])
        assert names(tmp_path) == ["maps.h5"]

    def test_unknown_method(self, tmp_path):
        write_maps(tmp_path / "x.h5", ["a"] * 5, MAPS, SCORES, ("a", "s"))
        with pytest.raises(StageError, match="no map method c; it holds a, b"):
            read_maps(tmp_path / "x.h5", "c")


def index_table(count: int) -> pd.DataFrame:
    """An index in which ids and labels are sorted, as folders are."""
    rows = []
    for number in range(count):
        label = int(number >= count // 2)
        kind = "spot" if label else "good"
        rows.append(
            {
                "image_id": f"test/{kind}/{number:03}", "path": f"test/{kind}/{number:03}.png",
                "split": "test", "defect_type": kind, "label": label,
                "masks": [f"m{number}"] if label else [],
                "mask_sha256": [files_hash(-number)] if label else [], "saturation": [], "width": 9, "height": 8, "mode": "RGB",
                "sha256": files_hash(number), "problem": "", "remedy": "",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def files_hash(number: int) -> str:
    import hashlib

    return hashlib.sha256(str(number).encode()).hexdigest()


class TestIndex:
    """One row per image; the usable ones in an order that is blind to labels."""

    def test_round_trip(self, tmp_path):
        table = index_table(6)
        write_index(tmp_path / "x.parquet", table)
        back = read_index(tmp_path / "x.parquet")
        assert list(back.columns) == list(COLUMNS)
        assert back.to_dict("records") == table[list(COLUMNS)].to_dict("records")
        for name in ("masks", "mask_sha256", "saturation"):
            assert [type(values) for values in back[name]] == [list] * 6

    def test_empty(self, tmp_path):
        write_index(tmp_path / "x.parquet", pd.DataFrame([], columns=list(COLUMNS)))
        back = read_index(tmp_path / "x.parquet")
        assert len(back) == 0
        assert len(usable(back, "train")) == 0

    def test_order_mixes_labels(self):
        labels = usable(index_table(60), "test")["label"].to_numpy()
        changes = int((labels[1:] != labels[:-1]).sum())
        assert 15 < changes < 45, "sorted by label there would be one change"

    def test_order_is_that_of_content(self):
        table = index_table(20)
        order = list(usable(table, "test")["sha256"])
        assert order == sorted(order)
        shuffled = table.sample(frac=1, random_state=0)
        assert list(usable(shuffled, "test")["image_id"]) == list(usable(table, "test")["image_id"])
        renamed = table.assign(
            image_id=table["image_id"].str.replace("spot", "a"), label=1 - table["label"]
        )
        assert list(usable(renamed, "test")["sha256"]) == order

    def test_problems_and_other_splits_are_left_out(self):
        table = index_table(6)
        table.loc[1, "problem"] = "no mask"
        table.loc[2, "split"] = "train"
        assert set(usable(table, "test").index) == set(range(4)), "rows are numbered anew"
        assert not {"test/good/001", "test/good/002"} & set(usable(table, "test")["image_id"])

    def test_missing_or_broken(self, tmp_path):
        with pytest.raises(StageError, match="no such file; run snakemake"):
            read_index(tmp_path / "x.parquet")
        write_index(tmp_path / "x.parquet", index_table(6))
        content = (tmp_path / "x.parquet").read_bytes()
        for share in (0, 0.3, 0.9):
            (tmp_path / "x.parquet").write_bytes(content[: int(len(content) * share)])
            with pytest.raises(StageError, match=r"x\.parquet: broken index"):
                read_index(tmp_path / "x.parquet")


class TestProvenance:
    """The stamp says where an artefact comes from and how large each file is."""

    @pytest.fixture
    def job(self, tmp_path: Path) -> Job:
        folder = tmp_path / "run"
        (folder / "model" / "deep").mkdir(parents=True)
        (folder / "model" / "deep" / "w").write_bytes(b"12345")
        (folder / "model" / "v").write_bytes(b"1")
        (tmp_path / "beside.json").write_bytes(b"123")
        outputs = {
            "model": folder / "model",
            "training": tmp_path / "beside.json",
            "provenance": folder / "provenance.json",
        }
        return Job("train", {"seed": "seed0"}, {"a": 1}, {}, outputs, "FP", {}, "CODE", "cpu")

    def test_stamp(self, job):
        provenance.write_provenance(job, {"train_seconds": 1.5}, threads=3)
        stamp = provenance.read_provenance(job.outputs["provenance"])
        assert stamp["files"] == {"model/deep/w": 5, "model/v": 1, "../beside.json": 3}
        assert (stamp["fingerprint"], stamp["code"], stamp["threads"]) == ("FP", "CODE", 3)
        assert stamp["measured"] == {"train_seconds": 1.5}
        assert stamp["packages"]["numpy"] == np.__version__
        assert stamp["machine"]["cores"] == os.cpu_count()

    def test_missing_output_is_no_stamp(self, job):
        job.outputs["training"].unlink()
        with pytest.raises(FileNotFoundError):
            provenance.write_provenance(job, {}, threads=1)
        assert not job.outputs["provenance"].exists()

    def test_stopwatch(self):
        watch = provenance.Stopwatch()
        sum(range(300_000))
        measured = watch.read()
        assert measured["wall_seconds"] > 0
        assert measured["cpu_seconds"] > 0
        assert measured["peak_rss_bytes"] > 10_000_000

    def test_peak_memory_is_not_the_parent_s(self):
        held = np.ones(2**27)  # 1 GB, all of it touched
        source = "from stages.artifacts.provenance import peak_memory; print(peak_memory())"
        child = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True)
        assert 2**22 < int(child.stdout) < held.nbytes / 2 < provenance.peak_memory()

    def test_a_failing_stage_leaves_no_stamp(self, job):
        from stages.command import Options, execute

        options = Options(threads=1, device="cpu", progress=False)
        job.outputs["provenance"].write_text(json.dumps({"fingerprint": "FP", "files": {}}))

        def fail(job: Job, options: Options) -> dict:
            raise StageError("x")

        with pytest.raises(StageError):
            execute(job, options, fail)
        assert not job.outputs["provenance"].exists(), "the old stamp goes before the work starts"
        execute(job, options, lambda job, options: {"n": 1})
        assert read_json(job.outputs["provenance"])["measured"]["n"] == 1

    def test_commit(self, monkeypatch):
        def git(command, **options):
            return SimpleNamespace(stdout={"rev-parse": "abc\n", "status": " M x\n"}[command[1]])

        provenance.commit.cache_clear()
        monkeypatch.setattr(provenance.subprocess, "run", git)
        assert provenance.commit() == "abc+changes"

        def no_git(command, **options):
            raise FileNotFoundError("git")

        provenance.commit.cache_clear()
        monkeypatch.setattr(provenance.subprocess, "run", no_git)
        assert provenance.commit() is None
        provenance.commit.cache_clear()
