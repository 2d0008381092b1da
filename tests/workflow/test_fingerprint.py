"""Digests of code see what it does and not how it is written; digests of data see content."""

from __future__ import annotations

import ast
import os
import textwrap
from pathlib import Path

import pytest

from workflow.fingerprint import (
    Code,
    HashCache,
    definitions,
    digest,
    folder_content,
    imported_names,
    normalised_tree,
    sha256_file,
    version,
)

ROOT = Path(__file__).resolve().parents[2]
MODULE = textwrap.dedent('''
    """What it does."""
    import math

    class Thing:
        """A thing."""

        size: int = 3

        def grow(self, by):
            """Grow."""
            return self.size + by * 2  # twice

    def empty():
        """Nothing."""
    ''')


@pytest.fixture
def cache(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "cache" / "hashes.json")


def write(root: Path, files: dict[str, str]) -> None:
    """Write modules by their path below ``root``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class TestNormalisedTree:
    """Comments, docstrings and formatting are no code."""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("  # twice", ""),
            ('"""What it does."""', '"""Something else."""'),
            ('"""A thing."""', "'''Two\n    lines.'''"),
            ('        """Grow."""\n', ""),
            ("self.size + by * 2", "(self.size + (by*2))"),
            ("import math\n", "import math\n\n\n"),
            ("size: int = 3", "size : int  =  3"),
        ],
    )
    def test_unchanged(self, old, new):
        assert MODULE.count(old) == 1
        assert normalised_tree(MODULE.replace(old, new)) == normalised_tree(MODULE)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("* 2", "* 3"),
            ("* 2", "* 2.0"),
            ("self.size + by", "by + self.size"),
            ("import math", "import cmath"),
            ("size: int = 3", "size: float = 3"),
            ("def grow(self, by)", "def grow(self, by=1)"),
            ("def empty():", "async def empty():"),
            ("    return self.size", "    'text'\n        return self.size"),
        ],
    )
    def test_changed(self, old, new):
        assert MODULE.count(old) == 1
        ast.parse(MODULE.replace(old, new))
        assert normalised_tree(MODULE.replace(old, new)) != normalised_tree(MODULE)

    def test_the_same_for_every_python(self):
        """Fields that other versions add are empty, and are left out; this text stays what it is."""
        source = "class A(B):\n    def f[T](self, x=None):\n        return f'{x!r:>3}' or ()"
        source = source.replace("[T]", "")
        assert normalised_tree(source) == (
            "Module(body=[ClassDef(bases=[Name(ctx=Load(),id='B')],body=[FunctionDef(args="
            "arguments(args=[arg(arg='self'),arg(arg='x')],defaults=[Constant(value=None)]),body="
            "[Return(value=BoolOp(op=Or(),values=[JoinedStr(values=[FormattedValue(conversion=114,"
            "format_spec=JoinedStr(values=[Constant(value='>3')]),value=Name(ctx=Load(),id='x'))]),"
            "Tuple(ctx=Load())]))],name='f')],name='A')])"
        )

    def test_a_text_that_is_no_docstring_counts(self):
        assert normalised_tree('x = """a"""') != normalised_tree('x = """b"""')
        assert normalised_tree('def f():\n    """a"""\n    """b"""') != normalised_tree(
            'def f():\n    """a"""\n    """c"""'
        )


class TestDefinitions:
    """What a person calls the place where code has changed."""

    SOURCE = "X = 1\n\ndef f():\n    return 1\n\n@g\nclass A(B):\n    y = 2\n    def m(self):\n        return 3\n"

    @pytest.mark.parametrize(
        ("old", "new", "name"),
        [
            ("X = 1", "X = 2", ""),
            ("return 1", "return 2", "f"),
            ("return 3", "return 4", "A.m"),
            ("y = 2", "y = 3", "A"),
            ("(B)", "(C)", "A"),
            ("@g", "@h", "A"),
        ],
    )
    def test_changed(self, old, new, name):
        before, after = definitions(self.SOURCE), definitions(self.SOURCE.replace(old, new))
        assert set(before) == {"", "f", "A", "A.m"}
        assert {key for key in before if before[key] != after[key]} == {name}

    def test_unchanged(self):
        commented = self.SOURCE.replace("X = 1", '"""New."""\n\nX = 1  # one').replace(
            "    return 1", '    """F."""\n    return 1'
        )
        assert definitions(commented) == definitions(self.SOURCE)


class TestImportedNames:
    """Every form of import statement is followed, wherever it stands."""

    @pytest.mark.parametrize(
        ("source", "module", "is_package", "expected"),
        [
            ("import a.b, c as d", "m", False, {"a.b", "c"}),
            ("from a import b", "m", False, {"a", "a.b"}),
            ("from . import b", "p.m", False, {"p", "p.b"}),
            ("from .q import b", "p.m", False, {"p.q", "p.q.b"}),
            ("from ..q import b", "p.r.m", False, {"p.q", "p.q.b"}),
            ("from .q import b", "p", True, {"p.q", "p.q.b"}),
            ("def f():\n    from a import b", "m", False, {"a", "a.b"}),
            ("try:\n    import a\nexcept ImportError:\n    import b", "m", False, {"a", "b"}),
        ],
    )
    def test_forms(self, source, module, is_package, expected):
        assert set(imported_names(source, module, is_package)) == expected


class TestCode:
    """A module's digest covers what it may import, and nothing else of the repository."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "repository"
        write(
            root,
            {
                "stages/__init__.py": "",
                "stages/one.py": "import stages.two\nimport numpy\n",
                "stages/two.py": "def f():\n    from stages.sub import three\n",
                "stages/sub/__init__.py": "from .four import x\n",
                "stages/sub/three.py": "import stages.one\n",
                "stages/sub/four.py": "x = 1\n",
                "stages/five.py": "y = 1\n",
            },
        )
        return root

    def test_closure(self, root, cache):
        assert Code(root, cache).closure("stages.one") == {
            "stages",
            "stages.one",
            "stages.two",
            "stages.sub",
            "stages.sub.three",
            "stages.sub.four",
        }

    def test_what_is_imported_counts(self, root, cache):
        before = Code(root, cache).program("stages.one").digest
        write(root, {"stages/sub/four.py": "x = 12\n"})
        assert Code(root, cache).program("stages.one").digest != before

    def test_what_is_not_imported_does_not(self, root, cache):
        before = Code(root, cache).program("stages.one").digest
        write(root, {"stages/five.py": "y = 12\n", "stages/six.py": ""})
        assert Code(root, cache).program("stages.one").digest == before
        assert Code(root, cache).program("stages.five").digest != before

    def test_comments_do_not_count(self, root, cache):
        before = Code(root, cache).program("stages.one").digest
        write(root, {"stages/sub/four.py": '"""Four."""\nx = 1  # one\n'})
        assert Code(root, cache).program("stages.one").digest == before

    def test_where_the_repository_lies_does_not_count(self, root, cache):
        before = Code(root, cache).program("stages.one").digest
        root.rename(root.with_name("elsewhere"))
        assert Code(root.with_name("elsewhere"), cache).program("stages.one").digest == before


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Code:
    return Code(ROOT, HashCache(tmp_path_factory.mktemp("cache") / "hashes.json"))


class TestOwnModules:
    """The repository's closures keep one algorithm's edits away from the others."""

    @pytest.mark.parametrize("stage", ["train", "predict", "features", "evaluate"])
    def test_no_stage_imports_an_algorithm(self, code, stage):
        algorithms = {
            f"algorithms.{path.stem}"
            for path in (ROOT / "algorithms").glob("*.py")
            if "@register(" in path.read_text()
        }
        assert {"algorithms.padim", "algorithms.random"} <= algorithms
        assert not algorithms & code.closure(f"stages.{stage}")

    def test_train_holds_what_it_imports_inside_functions(self, code):
        assert {"stages.trainer", "stages.batches", "algorithms.base"} <= code.closure(
            "stages.train"
        )

    def test_features_hold_the_backbone(self, code):
        assert "stages.backbone" in code.closure("stages.features")
        assert "stages.backbone" not in code.closure("stages.train")

    def test_blocks(self, code):
        assert "algorithms.blocks.maps" in code.closure("algorithms.padim")
        assert "algorithms.blocks.coreset" not in code.closure("algorithms.padim")
        assert "algorithms.blocks.coreset" in code.closure("algorithms.patchcore")

    def test_one_metric_holds_no_other(self, code):
        closure = code.closure("visionad_metrics.catalogue.image_auroc")
        assert "visionad_metrics.catalogue.pixel_auroc" not in closure
        assert "visionad_metrics.ranking" in closure
        assert not any(
            name.startswith("visionad_metrics.catalogue.")
            for name in code.closure("stages.evaluate")
        )


class TestHashCache:
    """A file is read again only when its size or time has changed."""

    def compute(self, path: Path) -> str:
        self.calls = getattr(self, "calls", 0) + 1
        return path.read_text()

    @pytest.fixture(autouse=True)
    def patient(self, request, monkeypatch):
        """Let files be old: these tests cannot wait."""
        if "young" not in request.node.name:
            monkeypatch.setattr("workflow.fingerprint.RACY_SECONDS", 0)

    def test_reuses(self, tmp_path, cache):
        path = tmp_path / "x"
        path.write_text("a")
        assert [cache.get("k", path, self.compute) for _ in range(3)] == ["a", "a", "a"]
        assert self.calls == 1
        assert cache.get("another kind", path, lambda path: 7) == 7

    def test_survives_in_its_file(self, tmp_path, cache):
        path = tmp_path / "x"
        path.write_text("a")
        cache.get("k", path, self.compute)
        cache.save()
        again = HashCache(cache.path)
        assert again.get("k", path, self.compute) == "a"
        assert self.calls == 1
        again.save()
        assert not list(cache.path.parent.glob("*.tmp-*"))

    def test_a_young_file_is_not_trusted(self, tmp_path):
        """Two changes within a tick of a coarse clock leave size and times alone."""
        cache, path = HashCache(tmp_path / "hashes.json"), tmp_path / "x"
        path.write_text("a")
        times = path.stat()
        assert cache.get("k", path, self.compute) == "a"
        path.write_text("b")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert cache.get("k", path, self.compute) == "b"
        assert cache.entries == {}

    def test_a_new_file_with_the_old_time_is_seen(self, tmp_path, cache):
        path = tmp_path / "x"
        for text in ("a", "b"):
            path.write_text(text)
            os.utime(path, (1, 1))
            assert cache.get("k", path, self.compute) == text

    @pytest.mark.parametrize("text", ["b", "longer"])
    def test_sees_a_change(self, tmp_path, cache, text):
        path = tmp_path / "x"
        path.write_text("a")
        cache.get("k", path, self.compute)
        path.write_text(text)
        os.utime(path, ns=(1, 1))
        assert cache.get("k", path, self.compute) == text

    @pytest.mark.parametrize("content", ["", "{", "\x00", "[]", '{"k:x": 7}', '{"k:x": null}'])
    def test_damage_costs_time_only(self, tmp_path, content):
        path = tmp_path / "hashes.json"
        path.write_text(content)
        assert HashCache(path).entries == {}


class TestFolderContent:
    """A folder's digest changes with names and contents, not with times or places."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "bolt"
        for name in ("train/good/0.png", "test/good/0.png", "test/spot/0.png", "notes.txt"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return folder

    def content(self, folder: Path, tmp_path: Path) -> str | None:
        cache = HashCache(tmp_path / "none.json")
        return digest([folder_content(folder, part, cache) for part in ("train", "test")])

    def test_absent(self, tmp_path):
        cache = HashCache(tmp_path / "none.json")
        assert folder_content(tmp_path / "nothing", "train", cache) is None

    def test_changes(self, folder, tmp_path):
        digests = [self.content(folder, tmp_path)]
        (folder / "test/spot/0.png").write_text("test/spot/1.png")  # as long as before
        digests.append(self.content(folder, tmp_path))
        (folder / "test/spot/0.png").rename(folder / "test/spot/1.png")
        digests.append(self.content(folder, tmp_path))
        (folder / "test/spot/2.png").write_text("new")
        digests.append(self.content(folder, tmp_path))
        (folder / "test/spot").rename(folder / "test/dent")
        digests.append(self.content(folder, tmp_path))
        (folder / "test/dent/2.png").unlink()
        digests.append(self.content(folder, tmp_path))
        assert len(set(digests)) == len(digests)

    def test_swapped_names(self, folder, tmp_path):
        before = self.content(folder, tmp_path)
        one, two = folder / "test/good/0.png", folder / "test/spot/0.png"
        texts = one.read_text(), two.read_text()
        one.write_text(texts[1])
        two.write_text(texts[0])
        assert self.content(folder, tmp_path) != before

    def test_does_not_change(self, folder, tmp_path):
        before = self.content(folder, tmp_path)
        (folder / "notes.txt").write_text("outside of the parts")
        (folder / "train/.DS_Store").write_text("a dotfile")
        for path in folder.rglob("*"):
            os.utime(path, (1, 1))
        assert self.content(folder, tmp_path) == before
        folder.rename(tmp_path / "nut")
        assert self.content(tmp_path / "nut", tmp_path) == before

    def test_follows_links_to_folders(self, folder, tmp_path):
        """The index reads through them, so their content must count."""
        before = self.content(folder, tmp_path)
        (folder / "test/spot").rename(tmp_path / "elsewhere")
        (folder / "test/spot").symlink_to(tmp_path / "elsewhere")
        assert self.content(folder, tmp_path) == before
        (tmp_path / "elsewhere/0.png").write_text("changed")
        assert self.content(folder, tmp_path) != before


class TestProgram:
    """Versions count of packages that decide results, where they are imported."""

    def test_versions(self):
        code = Code(ROOT, HashCache(ROOT / "none.json"))
        assert {"torch", "numpy"} <= set(code.program("stages.train", "algorithms.padim").versions)
        assert "FrEIA" in code.program("stages.train", "algorithms.fastflow2d").versions
        assert "FrEIA" not in code.program("stages.train", "algorithms.padim").versions
        assert not {"torch", "timm"} & set(code.program("stages.evaluate").versions)

    def test_a_build_is_no_version(self, monkeypatch):
        version.cache_clear()
        monkeypatch.setattr("importlib.metadata.version", lambda name: "2.14.1+cu130")
        assert version("torch") == "2.14.1"
        version.cache_clear()


def test_digest_is_one_of_content():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert digest([["a", "b"], []]) != digest([["a"], ["b"]])
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def test_sha256_of_a_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256_file(path).startswith("ba7816bf8f01cfea")
