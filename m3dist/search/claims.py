"""One process at a time does a named piece of work, across processes and nodes that share a folder.

A claim is a numbered file, `<name>.<n>.json`; the highest number holds. A file is made by an exclusive create, so of
several that find the last claim given up or its holder dead only one makes the next number; files are never deleted
and never made twice, which leaves no moment in which two could win. A holder touches its file while it works; one
that has not been touched for `expiry` seconds, by the filesystem's own clock, or whose process is gone, is free.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


class Claims:
    """The claims of one holder in a folder that all share.

    owner: says in the files who held. beat, expiry: seconds between signs of life, and without one until a claim is
    free.
    """

    def __init__(self, root: Path, owner: str, beat: float = 2.0, expiry: float = 30.0):
        self.root, self.owner, self.beat, self.expiry = root, owner, beat, expiry
        root.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def hold(
        self,
        name: str,
        done: Callable[[], bool] = lambda: False,
        waiting: Callable[[], None] = lambda: None,
        poll: float = 0.2,
    ) -> Iterator[bool]:
        """Wait until the work is `done` elsewhere (gives False) or is ours to do (gives True, held inside the block).

        waiting: called while somebody else holds it; may raise.
        """
        path = self._acquire(name, done, waiting, poll)
        if path is None:
            yield False
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(path, stop), name=f"claim {name}", daemon=True)
        thread.start()
        try:
            yield True
        finally:
            stop.set()
            thread.join()
            self._write(path, "given up")

    def try_hold(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """As `hold`, but raises BlockingIOError, naming the holder, where it would wait."""

        def refuse() -> None:
            raise BlockingIOError(self.holder(name))

        return self.hold(name, waiting=refuse)

    def holder(self, name: str) -> str:
        """Who holds it, for people; empty when nobody does."""
        last = self._last(name)
        if last is None or self._free(last):
            return ""
        told = _read(last)
        return f"{told.get('owner', '?')} (process {told.get('pid', '?')} on {told.get('host', '?')})"

    def count(self, name: str) -> int:
        """How often it was claimed."""
        return len(self._numbered(name))

    def _acquire(
        self, name: str, done: Callable[[], bool], waiting: Callable[[], None], poll: float
    ) -> Path | None:  # fmt: skip
        while True:
            if done():
                return None
            last = self._last(name)
            if last is None or self._free(last):
                path = self._path(name, 1 if last is None else _number(last) + 1)
                if self._create(path):
                    if not done():  # finished between our look and our claim
                        return path
                    self._write(path, "given up")
                    return None
                continue
            waiting()
            time.sleep(poll)

    def _path(self, name: str, n: int) -> Path:
        return self.root / f"{name}.{n}.json"

    def _numbered(self, name: str) -> list[Path]:
        return sorted(self.root.glob(f"{name}.*.json"), key=_number)

    def _last(self, name: str) -> Path | None:
        files = self._numbered(name)
        return files[-1] if files else None

    def _told(self, state: str) -> str:
        return json.dumps({"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid(), "state": state})

    def _create(self, path: Path) -> bool:
        """Make a claim whole and exclusively: written aside, then linked, which fails where the name is taken."""
        aside = self.root / f".{uuid.uuid4().hex}"
        aside.write_text(self._told("held"))
        try:
            os.link(aside, path)
            return True
        except FileExistsError:
            return False
        finally:
            aside.unlink()

    def _write(self, path: Path, state: str) -> None:
        aside = self.root / f".{uuid.uuid4().hex}"
        aside.write_text(self._told(state))
        aside.replace(path)

    def _free(self, path: Path) -> bool:
        told = _read(path)
        if told.get("state") != "held":
            return True
        if told["host"] == socket.gethostname() and not _alive(told["pid"]):
            return True
        clock = self.root / f".{uuid.uuid4().hex}"
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink()
        return now - path.stat().st_mtime > self.expiry

    def _beat(self, path: Path, stop: threading.Event) -> None:
        while not stop.wait(self.beat):
            with contextlib.suppress(OSError):
                os.utime(path)


def _number(path: Path) -> int:
    return int(path.name.rsplit(".", 2)[1])


def _read(path: Path) -> dict:
    return json.loads(path.read_text())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
