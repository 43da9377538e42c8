"""Leases: one process at a time does a named piece of work, across processes and nodes that share a folder.

A lease is the write side of filelock's SoftReadWriteLock, which is made for NFS: its holder renews a record, and a
process that waits takes over once it has seen the same record for EXPIRY seconds, whatever became of the holder. A
process that is paused for longer loses its lease to a waiting one and does not notice: the same work may then be done
twice, so what is done under a lease must end alike whoever does it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import SoftReadWriteLock, Timeout

HEARTBEAT = 2.0  # seconds between renewals of a lease
EXPIRY = 10.0  # seconds without a renewal after which a process that waits takes the lease over
LOOK = 0.5  # seconds between looks at whether to go on waiting


def lock(path: Path, lost: Callable[[Any], None] | None = None) -> SoftReadWriteLock:
    """The lock behind a lease, for one thread. lost: called by another thread when the lease was taken over."""
    return SoftReadWriteLock(
        path, is_singleton=False, heartbeat_interval=HEARTBEAT, stale_threshold=EXPIRY, on_compromise=lost
    )


class Leases:
    """The leases in one folder, as one thread sees them.

    root: the folder. names: leases that will be wanted. The time until a dead process's lease ends runs from the
    moment a waiting process first looks at it; these are looked at now, so that it runs for all of them together.
    """

    def __init__(self, root: Path, names: Iterable[str] = ()):
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._locks: dict[str, SoftReadWriteLock] = {}
        for name in names:
            with contextlib.suppress(Timeout), self._lock(name).write_lock(blocking=False):
                pass

    @contextlib.contextmanager
    def hold(
        self, name: str, done: Callable[[], bool] = lambda: False, waiting: Callable[[], None] = lambda: None
    ) -> Iterator[bool]:
        """Hold a lease while the block runs (gives True), unless the work is `done` elsewhere first (gives False).

        waiting: called twice a second while another process holds the lease; may raise.
        """
        mine, held = self._lock(name), False
        while not held and not done():
            try:
                mine.acquire_write(LOOK)
                held = True
            except Timeout:
                waiting()
        try:
            yield held and not done()
        finally:
            if held:
                mine.release()

    def _lock(self, name: str) -> SoftReadWriteLock:
        if name not in self._locks:
            self._locks[name] = lock(self.root / name)
        return self._locks[name]
