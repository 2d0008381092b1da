"""The store of finished results: what comes back is whole and in its place, or nothing comes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.artifacts import store as module
from stages.artifacts.provenance import file_sizes
from stages.artifacts.stamp import Stamp, read_stamp
from stages.artifacts.store import LINKED_BYTES, STAMP, Collected, Store

ROOT = Path(__file__).resolve().parents[2]
SMALL, LARGE = b"small", b"L" * LINKED_BYTES


class Killed(BaseException):
    """What ends a process between two steps."""


class Artefact:
    """An artefact as a stage leaves it: outputs, and a stamp that lists their files."""

    def __init__(self, stamp: Path, outputs: Iterable[Path]) -> None:
        self.stamp, self.outputs = stamp, list(outputs)

    def make(self, fingerprint: str, files: Mapping[Path, bytes]) -> Stamp:
        """Write files, and stamp all that lies in the outputs."""
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # as stages do: never in place
            path.write_bytes(content)
        sizes = file_sizes(self.stamp.parent, [path for path in self.outputs if path.exists()])
        self.stamp.parent.mkdir(parents=True, exist_ok=True)
        self.stamp.write_text(json.dumps({"fingerprint": fingerprint, "files": sizes}))
        return self.read()

    def read(self) -> Stamp:
        stamp = read_stamp(self.stamp)
        assert stamp is not None
        return stamp

    def is_valid(self, fingerprint: str) -> bool:
        """Tell what the plan would say."""
        stamp = read_stamp(self.stamp)
        return stamp is not None and stamp.fingerprint == fingerprint and stamp.is_whole()


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".store")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def model(results: Path) -> Artefact:
    """An artefact with a folder, a file of its own and a large file."""
    place = results / "models"
    return Artefact(place / "provenance.json", [place / "model", place / "training.json"])


@pytest.fixture
def files(model: Artefact) -> dict[Path, bytes]:
    folder, training = model.outputs
    return {folder / "deep/weights": LARGE, folder / "names": SMALL, training: b"{}"}


class TestStamp:
    """A stamp that cannot be read is none, and one whose files differ is not whole."""

    def test_places_and_sizes(self, model, files):
        stamp = model.make("a", files)
        assert stamp.places() == sorted(files)
        assert stamp.is_whole()
        assert stamp.versions is None
        model.outputs[1].write_bytes(b"{} ")
        assert not stamp.is_whole()
        model.outputs[1].unlink()
        assert not stamp.is_whole()

    @pytest.mark.parametrize(
        "text", ["", "[]", "7", "{}", '{"fingerprint": "a"}', '{"fingerprint": "a", "files": [1]}',
                 '{"fingerprint": "a", "files": {"x": "many"}}'],
    )  # fmt: skip
    def test_damaged(self, tmp_path, text):
        path = tmp_path / "provenance.json"
        assert read_stamp(path) is None
        path.write_text(text)
        assert read_stamp(path) is None

    def test_versions(self, tmp_path):
        path = tmp_path / "provenance.json"
        path.write_text('{"fingerprint": "a", "files": {}, "versions": {"numpy": "2"}}')
        stamp = read_stamp(path)
        assert stamp is not None and stamp.versions == {"numpy": "2"}


class TestRoundTrip:
    """What was kept comes back as it was."""

    def test_files_and_folders(self, store, model, files, results):
        stamp = model.make("a", files)
        before = contents(results)
        assert store.keep(stamp)
        assert not store.keep(stamp), "kept already"
        assert store.fingerprints() == {"a"}
        shutil.rmtree(results)
        assert store.restore("a", model.stamp, model.outputs)
        assert contents(results) == before
        assert model.is_valid("a")

    def test_an_output_elsewhere(self, store, tmp_path):
        """A page's stamp lies in ``results/``, the page in ``docs/``."""
        page = tmp_path / "docs" / "x.md"
        artefact = Artefact(tmp_path / "results/page/x.provenance.json", [page])
        store.keep(artefact.make("a", {page: b"# First"}))
        artefact.make("b", {page: b"# Second"})
        (page.parent / "by_hand.md").write_text("kept")
        assert store.restore("a", artefact.stamp, artefact.outputs)
        assert contents(page.parent) == {"x.md": b"# First", "by_hand.md": b"kept"}
        assert artefact.is_valid("a")

    def test_there_and_back(self, store, model, files):
        """Two results of one job take each other's place as often as one likes."""
        weights = model.outputs[0] / "deep/weights"
        for fingerprint, content in (("a", LARGE), ("b", LARGE[::-1] + b"b")):
            store.keep(model.make(fingerprint, {**files, weights: content}))
        for _ in range(2):
            assert store.restore("a", model.stamp, model.outputs)
            assert weights.read_bytes() == LARGE and model.is_valid("a")
            assert store.restore("b", model.stamp, model.outputs)
            assert weights.read_bytes().endswith(b"b") and model.is_valid("b")

    def test_relative_and_roundabout_paths(self, store, model, files, tmp_path, monkeypatch):
        """Stages give paths relative to the repository, and a data set's root may go up."""
        monkeypatch.chdir(tmp_path)
        model.make("a", files)
        stamp = read_stamp(model.stamp.relative_to(tmp_path))
        assert stamp is not None and store.keep(stamp)
        roundabout = [tmp_path / ".store" / ".." / path.relative_to(tmp_path)
                      for path in model.outputs]  # fmt: skip
        assert store.restore("a", model.stamp, roundabout)
        assert model.is_valid("a")

    def test_not_there(self, store, model, files, results):
        model.make("b", files)
        before = contents(results)
        assert not store.restore("a", model.stamp, model.outputs)
        assert contents(results) == before, "what was not brought back replaces nothing"

    def test_what_is_not_whole_is_not_kept(self, store, model, files):
        stamp = model.make("a", files)
        model.outputs[1].unlink()
        assert not store.keep(stamp)
        assert store.fingerprints() == set()
        assert not store.folder.exists()

    def test_left_by_a_killed_process_of_the_same_number(self, store, model, files):
        """In containers numbers return at once."""
        (store.folder / f".a.tmp-{os.getpid()}").mkdir(parents=True)
        (store.folder / f".a.tmp-{os.getpid()}" / "0").write_text("half")
        assert store.keep(model.make("a", files))
        assert [path.name for path in store.folder.iterdir()] == ["a"]


class TestLinks:
    """Large files cost no space, small ones are safe from editors."""

    def test_large_are_linked_small_copied(self, store, model, files, results):
        store.keep(model.make("a", files))

        def linked() -> dict[str, bool]:
            return {path.name: path.stat().st_nlink == 2 for path in files}

        assert linked() == {"weights": True, "names": False, "training.json": False}
        assert store.size("a") == len(SMALL) + len("{}")
        shutil.rmtree(results)
        assert store.size("a") > len(LARGE)
        store.restore("a", model.stamp, model.outputs)
        assert linked() == {"weights": True, "names": False, "training.json": False}

    def test_impossible(self, store, model, files, results, monkeypatch):
        """On another file system, or one without links, copies do."""

        def refuse(*paths: Any, **options: Any) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
        assert store.keep(model.make("a", files))
        before = contents(results)
        shutil.rmtree(results)
        assert store.restore("a", model.stamp, model.outputs)
        assert contents(results) == before
        assert all(path.stat().st_nlink == 1 for path in files)

    def test_small_ones_are_spoilt_by_no_editor(self, store, model, files):
        store.keep(model.make("a", files))
        model.outputs[1].write_bytes(b"[]")  # in place, of the same size
        assert store.restore("a", model.stamp, model.outputs)
        assert model.outputs[1].read_bytes() == b"{}"


class TestDamage:
    """Half an entry is none."""

    def test_cut_in_place(self, store, model, files, results):
        """Whoever cuts a linked file cuts the store's, too."""
        store.keep(model.make("a", files))
        os.truncate(model.outputs[0] / "deep/weights", 100)
        before = contents(results)
        assert not store.restore("a", model.stamp, model.outputs)
        assert store.fingerprints() == set(), "dropped"
        assert contents(results) == before

    @pytest.mark.parametrize("name", ["0", STAMP])
    def test_missing_file(self, store, model, files, name):
        store.keep(model.make("a", files))
        (store.folder / "a" / name).unlink()
        assert store.read("a") is None
        assert store.fingerprints() == set()

    def test_stamp_of_another(self, store, model, files):
        store.keep(model.make("a", files))
        os.rename(store.folder / "a", store.folder / "b")
        assert store.read("b") is None
        assert store.fingerprints() == set()

    @pytest.mark.parametrize("name", ["../outside", "/etc/outside", "model/../../outside", "other"])
    def test_files_beside_the_outputs(self, store, model, files, results, name):
        """A stamp that was tampered with writes nowhere, and does not stand in the way."""
        store.keep(model.make("a", files))
        stamp = store.folder / "a" / STAMP
        data = json.loads(stamp.read_text())
        data["files"] = {name: len(SMALL)}
        (stamp.parent / "0").unlink()
        (stamp.parent / "0").write_bytes(SMALL)
        stamp.write_text(json.dumps(data))
        before = contents(results)
        assert store.read("a") is not None
        assert not store.restore("a", model.stamp, model.outputs)
        assert contents(results) == before
        assert store.fingerprints() == set()


class TestReplaced:
    """Nothing is left of the artefact that was there."""

    def test_extra_files_in_a_folder(self, store, model, files):
        store.keep(model.make("a", files))
        model.make("b", {**files, model.outputs[0] / "deep/extra": SMALL})
        assert store.restore("a", model.stamp, model.outputs)
        assert not (model.outputs[0] / "deep/extra").exists()

    def test_a_file_where_a_folder_was(self, store, model, files):
        store.keep(model.make("a", files))
        shutil.rmtree(model.outputs[0])
        model.make("b", {model.outputs[0]: SMALL})
        assert store.restore("a", model.stamp, model.outputs)
        assert model.is_valid("a")

    def test_other_metrics(self, store, results):
        """The list of metrics is edited: files come and go; what is no result stays."""
        folder = results / "metrics"
        few = Artefact(folder / "provenance.json", [folder / "auroc.json"])
        many = Artefact(folder / "provenance.json", [*few.outputs, folder / "pl.json"])
        store.keep(few.make("few", {folder / "auroc.json": b"1"}))
        store.keep(many.make("many", {folder / "pl.json": b"2"}))
        (folder / "notes.txt").write_text("by hand")
        assert store.restore("few", few.stamp, few.outputs)
        assert set(contents(folder)) == {"auroc.json", "notes.txt", "provenance.json"}
        assert store.restore("many", many.stamp, many.outputs)
        assert (folder / "pl.json").read_bytes() == b"2"


class TestKilled:
    """The stamp goes first and comes last: half is never whole."""

    @pytest.mark.parametrize("step", [0, 1, 2, "stamp"])
    def test_restoring(self, store, model, files, results, monkeypatch, step):
        store.keep(model.make("a", files))
        before = contents(results)
        model.make("b", {model.outputs[1]: b"other"})
        place, calls = module._place, []

        def dies(source: Path, target: Path) -> None:
            if len(calls) == step:
                raise Killed
            calls.append(target)
            place(source, target)

        def never(*paths: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(module, "_place", dies)
            if step == "stamp":
                patch.setattr(os, "replace", never)
            with pytest.raises(Killed):
                store.restore("a", model.stamp, model.outputs)
        assert not model.is_valid("a") and not model.is_valid("b")
        assert not model.stamp.exists()
        assert store.restore("a", model.stamp, model.outputs)
        assert contents(results) == before

    def test_keeping(self, store, model, files, monkeypatch):
        """Half an entry has no name by which it would be found."""
        stamp = model.make("a", files)

        def never(*paths: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", never)
            with pytest.raises(Killed):
                store.keep(stamp)
        assert store.fingerprints() == set()
        assert store.keep(stamp)


def test_full_disk_costs_the_copy_only(store, model, files, results, monkeypatch, capsys):
    stamp = model.make("a", files)
    before = contents(results)

    def full(*paths: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        assert not store.keep(stamp)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {model.stamp}: not kept in the store: ")
    assert "No space left on device" in said
    assert contents(results) == before
    assert list(store.folder.iterdir()) == [], "nothing half is left"
    assert store.keep(stamp), "once there is space"


class TestConcurrent:
    """Two processes may keep one result at once: one does, and none complains."""

    def test_other_is_quicker(self, store, model, files, monkeypatch, capsys):
        stamp = model.make("a", files)
        rename = os.rename

        def second(source: Path, target: Path) -> None:
            shutil.copytree(source, target)  # what the other process has put there meanwhile
            rename(source, target)

        monkeypatch.setattr(os, "rename", second)
        assert not store.keep(stamp)
        assert capsys.readouterr().err == ""
        assert [path.name for path in store.folder.iterdir()] == ["a"]
        assert store.read("a") is not None

    def test_processes(self, store, model, files):
        """Four that begin at once."""
        model.make("a", files)
        code = (
            "import sys; from pathlib import Path\n"
            "from stages.artifacts.stamp import read_stamp\n"
            "from stages.artifacts.store import Store\n"
            "stamp = read_stamp(Path(sys.argv[1])); print(flush=True); sys.stdin.read()\n"
            "Store(Path(sys.argv[2])).keep(stamp)\n"
        )
        words = [sys.executable, "-c", code, str(model.stamp), str(store.folder)]
        pipe = subprocess.PIPE
        processes = [
            subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            with process:
                assert process.wait(60) == 0
                assert process.stderr is not None and process.stderr.read() == ""
        assert [path.name for path in store.folder.iterdir()] == ["a"]
        assert store.restore("a", model.stamp, model.outputs)


class TestCollect:
    """The longest unused goes first, what is in use last, and never more than must."""

    @pytest.fixture
    def fill(self, store: Store, results: Path) -> Callable[..., None]:
        """Return a function that keeps results of 1000 bytes, the first named being the oldest."""

        def fill(*names: str) -> None:
            for age, name in enumerate(names):
                artefact = Artefact(results / "x.provenance.json", [results / "x"])
                store.keep(artefact.make(name, {results / "x": b"x" * 1000}))
                os.utime(store.folder / name, (1000 + age, 1000 + age))

        return fill

    def test_oldest_first(self, store, fill):
        fill("c", "a", "b", "d")
        assert store.collect(2500) == Collected(removed=2, freed=2000, left=2, size=2000)
        assert store.fingerprints() == {"b", "d"}
        assert store.collect(2500) == Collected(removed=0, freed=0, left=2, size=2000)

    def test_in_use_last(self, store, fill):
        fill("a", "b", "c")
        store.collect(1000, in_use=["a", "absent"])
        assert store.fingerprints() == {"a"}
        assert store.collect(0, in_use=["a"]).left == 0, "if nothing else is left"

    def test_restoring_is_use(self, store, fill, results):
        fill("a", "b", "c")
        assert store.restore("a", results / "x.provenance.json", [results / "x"])
        store.collect(2000)
        assert store.fingerprints() == {"a", "c"}

    def test_links_count_nothing(self, store, model, files, results, fill):
        """To remove what is also in ``results/`` frees nothing, and would lose it."""
        weights = next(iter(files))
        linked = Artefact(results / "w.provenance.json", [weights])
        store.keep(linked.make("linked", {weights: LARGE}))
        os.utime(store.folder / "linked", (0, 0))
        fill("a", "b")
        assert store.collect(1000) == Collected(removed=1, freed=1000, left=2, size=1000)
        assert store.fingerprints() == {"linked", "b"}
        assert store.collect(0) == Collected(removed=1, freed=1000, left=1, size=0)
        weights.unlink()
        assert store.collect(0).freed == len(LARGE)
        assert store.fingerprints() == set()

    def test_leftovers(self, store, fill):
        fill("a")
        left = store.folder / ".x.tmp-1"
        left.mkdir()
        (left / "0").write_text("half")
        assert store.fingerprints() == {"a"}
        assert store.collect(1e9) == Collected(removed=0, freed=0, left=1, size=1000)
        assert not left.exists()

    def test_absent_folder(self, store):
        assert store.fingerprints() == set()
        assert store.collect(0) == Collected(removed=0, freed=0, left=0, size=0)
        assert store.read("a") is None
        assert not store.folder.exists()
