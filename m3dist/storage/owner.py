"""One run per folder: whoever works in a run folder holds a lease on it and says who that is, in `leases/owner.json`.

On a mounted folder the lease is one of `leases`. In a store, which has no locks, it is the record itself: its owner
renews it, and a process that wrote its own reads it again before it believes that it holds the folder. There two may
hold it for some seconds where a store is slow; the one whose record is gone is told, and ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import SoftFileLockProtocolError, Timeout

from m3dist.storage import leases
from m3dist.storage.folders import Folder

FOLDER = "leases"  # in a run folder
SETTLE = 1.0  # seconds in which a store shows both of two that wrote at once
_RECORD = "owner.json"


@dataclass
class Owner:
    """Who works in a folder. lost: set when another process took the folder over."""

    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    lost: threading.Event = field(default_factory=threading.Event)

    def record(self, beat: int) -> dict[str, Any]:
        """What the folder says of it. beat: how often it was renewed."""
        return {"host": self.host, "process": self.process, "started": self.started, "key": self.key, "beat": beat}


@contextlib.contextmanager
def alone(folder: Folder) -> Iterator[Owner]:
    """Be the only one who works in a folder while the block runs; the folder of a dead process is taken over.

    Raises ValueError, which names the owner, when another process lives there or takes the folder over meanwhile, and
    where the folder is a prepared data set.
    """
    refuse_data(folder)
    mine = Owner()
    with _lease(folder, mine) if folder.is_local else _claim(folder, mine), _renewed(folder, mine):
        try:
            yield mine
        except KeyboardInterrupt:
            if not mine.lost.is_set():
                raise
        if mine.lost.is_set():
            raise ValueError(_refusal(folder, _record(folder), "took it over, as this process did not answer"))


def refuse_data(folder: Folder) -> None:
    """Raises ValueError where the folder is a prepared data set: with other files in it, none replaces it any more."""
    if folder.exists("dataset.json"):
        raise ValueError(f"out={folder}: is a prepared data set; choose another folder for what is trained on it")


def _refusal(folder: Folder, record: dict[str, Any], what: str = "works there") -> str:
    who = f"process {record['process']} on {record['host']}, started {record['started']}," if record else "a process"
    return f"{folder}: {who} {what}; wait for its end or stop it, or choose another out="


def _record(folder: Folder) -> dict[str, Any]:
    """What the last owner said of itself; empty where nobody did, or in words that are not ours."""
    try:
        found = (folder / FOLDER).read_json(_RECORD)
    except (OSError, ValueError):
        return {}
    ours = isinstance(found, dict) and found.keys() >= {"host", "process", "started", "key", "beat"}
    return found if ours else {}


@contextlib.contextmanager
def _lease(folder: Folder, mine: Owner) -> Iterator[None]:
    """The lease on a mounted folder."""
    root = Path(folder.path) / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    lock = leases.lock(root / "run", lambda compromise: mine.lost.set())
    seen: dict[str, Any] = {}
    until = time.monotonic() + leases.EXPIRY + 2 * leases.HEARTBEAT
    while True:
        with contextlib.suppress(Timeout):
            try:
                lock.acquire_write(leases.LOOK)
            except (
                RuntimeError,
                SoftFileLockProtocolError,
            ) as error:  # filelock's, of a lock that is not as it left it
                why = " ".join(str(error).split())
                raise ValueError(
                    f"{root}: damaged or changed ({why}); delete it, if no run works in {folder}"
                ) from None
            break
        now = _record(folder)
        if (seen and now and seen != now) or time.monotonic() > until:
            raise ValueError(_refusal(folder, now))
        seen = now or seen
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _claim(folder: Folder, mine: Owner) -> Iterator[None]:
    """The claim on a folder in a store."""
    seen = now = _record(folder)
    until = time.monotonic() + leases.EXPIRY
    while seen and now == seen and time.monotonic() < until:
        time.sleep(leases.LOOK)
        now = _record(folder)
    if now and now != seen:
        raise ValueError(_refusal(folder, now))
    (folder / FOLDER).write_json(_RECORD, mine.record(0))
    time.sleep(SETTLE)
    now = _record(folder)
    if now.get("key") != mine.key:
        raise ValueError(_refusal(folder, now))
    yield


@contextlib.contextmanager
def _renewed(folder: Folder, mine: Owner) -> Iterator[None]:
    """Renews the owner's record while the block runs, and looks whether it is still there; removes it at the end."""
    ended = threading.Event()
    there = folder / FOLDER
    there.write_json(_RECORD, mine.record(0))

    def renew() -> None:
        beat, last = 0, time.monotonic()
        while not ended.wait(leases.HEARTBEAT) and not mine.lost.is_set():
            with contextlib.suppress(OSError):
                if _record(folder).get("key", mine.key) != mine.key:
                    mine.lost.set()
                    return
                beat += 1
                there.write_json(_RECORD, mine.record(beat))
                last = time.monotonic()
            if time.monotonic() - last > leases.EXPIRY:  # the storage does not answer: others may take the folder over
                mine.lost.set()

    thread = threading.Thread(target=renew, name="owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(leases.EXPIRY)
        if not mine.lost.is_set():
            with contextlib.suppress(OSError):
                there.remove(_RECORD)
