"""Where a data set is written: beside its destination, then moved there whole.

A destination is replaced only if it is a prepared data set and nothing else. Symbolic links are followed, never
replaced. What a killed writer left beside the same destination is cleared by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import IO

from m3dist.data.dataset import DataError

_OURS = re.compile(
    r"(dataset\.json|(interactions|users|items)\.parquet|features|present|truth|(features|present|truth)/[\w-]+\.npy)"
)


class Place:
    """The destination of one data set, and the folder beside it that becomes it.

    tmp: the folder to write into, held by a lock while this process lives. Raises DataError.
    """

    def __init__(self, dst: str | Path):
        given = Path(dst)
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(dst)):
            raise DataError(f"{dst}: is a URI; prepare writes into a folder of this machine, copy it to a store after")
        try:
            self.dst = given.expanduser().resolve()  # a link stays: what it points to is written
            here = Path.cwd()
        except (OSError, RuntimeError) as error:
            raise DataError(f"{given}: cannot be a destination ({error}); choose another") from None
        if self.dst.is_symlink():  # what resolve makes of a circle of links since Python 3.13, where it raised before
            raise DataError(f"{given}: cannot be a destination (a circle of links); choose another")
        if here.is_relative_to(self.dst):
            raise DataError(f"{given}: is or holds the current folder; choose another destination")
        # a name of its own, so that two writers never share a folder
        self.tmp = self._beside(uuid.uuid4().hex[:8], "partial")
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Check the destination, clear what killed writers left, and make the folder to write into."""
        try:
            self._clear()
            self._check()
            self.dst.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.tmp.with_suffix(".lock"))
            self.tmp.mkdir()
        except OSError as error:
            self.close()
            raise DataError(f"{self.dst}: cannot write there ({error.strerror}); choose another destination") from None

    def move(self) -> None:
        """Put the written folder in the destination's place."""
        self._check()  # again: preparing may have taken hours
        if self.dst.exists():  # moved aside first, so that a failed rename never leaves half of each
            old = self.tmp.with_suffix(".old")
            self.dst.replace(old)
            self.tmp.replace(self.dst)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self.tmp.replace(self.dst)

    def close(self) -> None:
        """Delete what was written and not moved."""
        shutil.rmtree(self.tmp, ignore_errors=True)
        if self._lock:
            self.tmp.with_suffix(".lock").unlink(missing_ok=True)
            self._lock.close()

    def _beside(self, name: str, kind: str) -> Path:
        return self.dst.with_name(f".{self.dst.name}.{name}.{kind}")

    def _check(self) -> None:
        if not self.dst.exists():
            return
        if not self.dst.is_dir():
            raise DataError(f"{self.dst}: is a file; choose another destination")
        foreign = _foreign(self.dst)
        if foreign:
            raise DataError(
                f"{self.dst}: exists and is not a prepared data set alone ({foreign}), so it is not replaced; "
                "choose another destination, or delete it yourself"
            )

    def _clear(self) -> None:
        """Delete what dead writers left; bring an old data set back whose writer died between two moves."""
        if not self.dst.parent.is_dir():
            return
        ours = re.compile(rf"\.{re.escape(self.dst.name)}\.([0-9a-f]{{8}})\.(partial|old|lock)")
        found = [ours.fullmatch(path.name) for path in self.dst.parent.iterdir()]
        for name in sorted({match[1] for match in found if match}):
            lock = _locked(self._beside(name, "lock"))
            if lock is None:  # that writer lives
                continue
            old = self._beside(name, "old")
            if old.is_dir() and not self.dst.exists():
                old.replace(self.dst)
            for path in (old, self._beside(name, "partial")):
                shutil.rmtree(path, ignore_errors=True)
            self._beside(name, "lock").unlink(missing_ok=True)
            lock.close()


def _foreign(folder: Path) -> str:
    """What says that a folder is no prepared data set; "" for one, and for an empty folder."""
    empty = True
    for root, folders, files in os.walk(folder):
        for path in (Path(root) / name for name in (*folders, *files)):
            empty = False
            name = path.relative_to(folder).as_posix()
            if not _OURS.fullmatch(name) or path.is_symlink():
                return f"it holds {name}"
    if empty:
        return ""
    try:
        meta = json.loads((folder / "dataset.json").read_text())
        known = {"schema_version", "users", "items", "modalities", "fingerprint"} <= set(meta)
        stated = meta.get("files", {})  # not of data sets of earlier versions
        for path in folder.rglob("*") if known and stated else ():
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name != "dataset.json" and name not in stated:
                return f"it holds {name}"
    except (OSError, ValueError, TypeError):
        known = False
    return "" if known else "it has no dataset.json of ours"


def _locked(path: Path) -> IO[str] | None:
    """A lock file, held until it is closed or the process ends; None where another process holds it."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
