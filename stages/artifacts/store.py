"""Finished artefacts by fingerprint, so that a result that was made once need not be made again.

``.store/<fingerprint>/`` holds an artefact's stamp and its files, numbered as the stamp lists
them. Large files are hard links to those in ``results/`` and cost no space; small ones are copies,
which an editor that writes in place cannot spoil. An entry appears whole or not at all, and one
whose files do not have the sizes that were stamped is dropped.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.artifacts.files import remove
from stages.artifacts.stamp import Stamp, read_stamp

STAMP = "provenance.json"
LINKED_BYTES = 64 * 1024  # files of this size or more are linked


def _place(source: Path, target: Path) -> None:
    """Link or copy a file to where nothing is."""
    if source.stat().st_size >= LINKED_BYTES:
        try:
            os.link(source, target, follow_symlinks=False)
            return
        except OSError:
            pass  # another file system, or one without links: a copy does
    shutil.copyfile(source, target)


@dataclass(frozen=True)
class Collected:
    """What :meth:`Store.collect` removed and left, in entries and bytes."""

    removed: int
    freed: int
    left: int
    size: int


class Store:
    """The store in one folder.

    Parameters
    ----------
    folder
        Made when the first artefact is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fingerprints(self) -> set[str]:
        """Fingerprints of all entries."""
        try:
            return {name for name in os.listdir(self.folder) if not name.startswith(".")}
        except FileNotFoundError:
            return set()

    def keep(self, stamp: Stamp) -> bool:
        """Keep an artefact, unless it is kept already or not whole.

        A disk that is full costs the copy, not the artefact: that is said, and False returned.
        """
        entry = self.folder / stamp.fingerprint
        if entry.exists() or not stamp.is_whole():
            return False
        temporary = self.folder / f".{stamp.fingerprint}.tmp-{os.getpid()}"
        try:
            remove(temporary)  # of a killed process that had this one's number
            temporary.mkdir(parents=True)
            for number, path in enumerate(stamp.places()):
                _place(path, temporary / str(number))
            shutil.copyfile(stamp.path, temporary / STAMP)
            os.rename(temporary, entry)
        except OSError as error:
            remove(temporary)
            if not entry.exists():
                print(f"warning: {stamp.path}: not kept in the store: {error}", file=sys.stderr)
            return False
        return True

    def read(self, fingerprint: str) -> Stamp | None:
        """Read an entry's stamp; None, and the entry is gone, if it is not whole."""
        entry = self.folder / fingerprint
        stamp = read_stamp(entry / STAMP)
        if stamp is not None and stamp.fingerprint == fingerprint:
            names = {str(number): size for number, size in enumerate(stamp.files.values())}
            if Stamp(stamp.path, fingerprint, names, {}).is_whole():
                return stamp
        remove(entry)
        return None

    def restore(self, fingerprint: str, target: Path, outputs: Iterable[Path]) -> bool:
        """Put an artefact back, in place of what is there.

        Parameters
        ----------
        fingerprint
            Its entry.
        target
            Where its stamp lies; it goes first and comes last, so that half is never whole.
        outputs
            Files and folders that the artefact takes the place of; nothing else is written.

        Returns
        -------
        bool
            False if the store does not have it, or has it with files beside `outputs`; such an
            entry is dropped.
        """
        stamp = self.read(fingerprint)
        if stamp is None:
            return False
        entry, old = self.folder / fingerprint, read_stamp(target)
        new = Stamp(target, fingerprint, stamp.files, stamp.data)
        allowed = [Path(os.path.normpath(path)) for path in outputs]
        if not all(any(path.is_relative_to(place) for place in allowed) for path in new.places()):
            remove(entry)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        for path in [*allowed, *(old.places() if old else [])]:
            if path in allowed or path.parent == target.parent:
                remove(path)
        for number, path in enumerate(new.places()):
            path.parent.mkdir(parents=True, exist_ok=True)
            _place(entry / str(number), path)
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        shutil.copyfile(entry / STAMP, temporary)
        os.replace(temporary, target)
        os.utime(entry)  # used: the last to be collected
        return True

    def size(self, fingerprint: str) -> int:
        """Bytes that removing an entry would free: links to files elsewhere count nothing.

        Nor does its stamp: for so little, nothing that is linked shall go.
        """
        with os.scandir(self.folder / fingerprint) as files:
            found = [file.stat() for file in files if file.name != STAMP]
        return sum(status.st_size for status in found if status.st_nlink == 1)

    def collect(self, cap: float, in_use: Iterable[str] = ()) -> Collected:
        """Remove entries until the store takes at most ``cap`` bytes.

        The longest unused go first; those ``in_use`` only when nothing else is left. What killed
        runs left behind goes in any case.
        """
        for leftover in self.folder.glob(".*.tmp-*"):
            remove(leftover)
        used = set(in_use)
        sizes = {name: self.size(name) for name in self.fingerprints()}
        total, removed, freed = sum(sizes.values()), 0, 0
        oldest = sorted(
            sizes, key=lambda name: (name in used, os.stat(self.folder / name).st_mtime, name)
        )
        for name in oldest:
            if total - freed <= cap:
                break
            if sizes[name]:  # an entry of links alone frees nothing
                remove(self.folder / name)
                freed += sizes[name]
                removed += 1
        return Collected(removed, freed, len(sizes) - removed, total - freed)
