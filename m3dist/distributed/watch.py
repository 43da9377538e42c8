"""What a driver says about the workers of a Ray Train run: who joins and leaves, why, and what is awaited."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray

from m3dist.config import Config
from m3dist.distributed import diagnosis, nodes, placement
from m3dist.distributed.relay import Cause, Member

SILENCE = 60.0  # seconds without workers after which the driver says what it waits for; each further line takes twice
_ENOUGH = 3  # values of throughput on each side before two numbers of workers are compared


class Watch:
    """Follows the workers of one run and tells of changes through `say`, a line each; count: called at each failure."""

    def __init__(self, config: Config, say: Callable[[str], None], count: Callable[[], None]):
        self.config, self.say, self.count = config, say, count
        self.members: dict[int, Member] = {}  # by rank, of the workers that began last
        self.failures = 0
        self._waiting_since: float | None = time.monotonic()
        self._next = SILENCE
        self._rates: dict[tuple[str, int], list[float]] = {}  # (stage, workers): their interactions per second
        self._grew: tuple[int, int] | None = None  # from how many workers to how many, until that was judged

    def workers(self, members: list[Member]) -> None:
        """Workers have begun, for the first time or again."""
        before, self.members = self.members, {member.rank: member for member in members}
        self._waiting_since = None
        count = len(members)
        where = sorted({member.place for member in members})
        if not before:
            self.say(f"{_workers(count)} on {', '.join(where)}")
        elif count != len(before):
            joined = sorted(set(where) - {member.place for member in before.values()})
            new = f", new: {', '.join(joined)}" if joined else ""
            self.say(f"{_workers(count)} now, {len(before)} before{new}; they go on from the last checkpoint")
            self._grew = (len(before), count) if count > len(before) else None
        else:
            self.say(f"{_workers(count)} again; they go on from the last checkpoint")

    def failed(self, causes: list[Cause]) -> None:
        """Workers have ended, and Ray Train starts them again unless that happened too often.

        A node that its provider takes back is not counted among the failures, as Ray Train does not count it either.
        """
        self.count()
        why = diagnosis.explained(causes, self.members)
        if any(each.kind == "preempted" for each in causes):
            self.say(f"{why}; starting again")
        else:
            self.failures += 1
            most = placement.failures(self.config)
            then = "the run ends" if self.failures > most else "starting again"
            self.say(f"{why}; {then} (failure {self.failures}, max_failures={most})")
        self.awaits()

    def awaits(self) -> None:
        """No worker is there from now on, until some begin."""
        self._waiting_since, self._next = time.monotonic(), SILENCE

    def look(self) -> None:
        """Say what is awaited, where that takes long."""
        if self._waiting_since is None or time.monotonic() - self._waiting_since < self._next:
            return
        waited, self._next = time.monotonic() - self._waiting_since, 2 * self._next
        free, each = ray.available_resources(), placement.per_worker(self.config)
        least = placement.least_workers(self.config)
        room = all(free.get(name, 0) >= amount * least for name, amount in each.items())
        of = " + ".join(f"{n:g} {name}" for name, n in each.items())
        self.say(
            f"waiting for {_wanted(self.config)} of {of} each for {waited:.0f} s"
            + (", whose processes start; " if room else "; ")
            + f"the cluster's {len(nodes.alive())} node(s) have {placement.shown(free)} free now"
        )

    def values(self, stage: str, values: dict[str, float]) -> None:
        """Compare the throughput after workers joined with the one before, once, within a stage."""
        rate, count = values.get("interactions/s"), int(values.get("workers", 0))
        if rate is None or not count:
            return
        self._rates.setdefault((stage, count), []).append(rate)
        if self._grew is None or count != self._grew[1]:
            return
        before, after = (self._rates.get((stage, n), [])[-_ENOUGH:] for n in self._grew)
        if len(before) < 1 or len(after) < _ENOUGH:
            return
        few, many = self._grew
        self._grew = None
        if (slow := sum(after) / len(after)) < (fast := sum(before) / len(before)):
            self.say(
                f"{stage}: {_workers(many)} take {slow:,.0f} interactions/s together where {few} took {fast:,.0f}; "
                f"fewer are faster here: workers={few}, or a larger batch_size"
            )


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _wanted(config: Config) -> str:
    if isinstance(config.workers, tuple):
        return f"{config.workers[0]} to {config.workers[1]} workers"
    return _workers(config.workers)
