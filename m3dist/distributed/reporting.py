"""Rank 0's side of the relay: what it shows, logs and asks goes through the driver; and who the workers are."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import ray
import torch.distributed as dist

from m3dist.distributed import diagnosis
from m3dist.distributed.metrics import RunMetrics
from m3dist.distributed.relay import Member
from m3dist.storage.folders import Folder
from m3dist.training.callbacks import Stopped
from m3dist.training.tracking import Tracker

POLL = 0.1  # seconds between looks at the relay


class Remote:
    """Rank 0's side: a display and callbacks whose events appear in the driver."""

    def __init__(self, relay: Any):
        self.relay = relay
        self._asked, self._request, self._told = 0.0, "", 0.0

    def open(self) -> None:
        pass

    close = open

    def bar(self, stage: str, total: int, done: int, note: str) -> None:
        self.relay.push.remote(("bar", stage, total, done, note))

    def say(self, text: str) -> None:
        self.relay.push.remote(("say", text))

    def values(self, stage: str, step: int, values: dict[str, float]) -> None:
        self.relay.push.remote(("values", stage, step, values))

    def begin(self, stage: str) -> None:
        self._ask("begin", stage)

    def step(self, stage: str, epoch: int, step: int) -> None:
        """Told of about twice a second: a look at the driver takes longer than many a step."""
        if time.monotonic() - self._told > 0.5:
            self._told = time.monotonic()
            self._ask("step", stage, epoch, step)

    def __call__(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        self._ask("epoch", stage, epoch, values)

    def _ask(self, *event: Any) -> None:
        """Hand an event to the driver's callbacks and wait for what they say."""
        number = ray.get(self.relay.push.remote(("heard", *event)))
        while True:
            handled, request = ray.get(self.relay.state.remote())
            if request == "stop":
                raise Stopped
            if handled >= number or request:
                return
            time.sleep(POLL / 2)

    def interrupted(self) -> bool:
        if time.monotonic() - self._asked > 0.5:
            self._asked = time.monotonic()
            self._request = ray.get(self.relay.state.remote())[1]
        return self._request == "interrupt"


class WorkerTracker(Tracker):
    """Rank 0's tracker: what it logs says how many workers there are."""

    def __init__(self, out: str, remote: Remote, listens: bool, world: int):
        super().__init__(Folder(out), remote if listens else None, remote, remote.interrupted)
        self.world, self.metrics = world, RunMetrics(out)

    def log(self, stage: str, step: int, values: dict[str, float]) -> None:
        values = {**values, "workers": float(self.world)}
        self.metrics.log(stage, step, values)
        super().log(stage, step, values)


def announce(relay: Any, rank: int, world: int) -> None:
    """Rank 0 tells the driver who the workers are; all workers call it alike."""
    node = ray.get_runtime_context().get_node_id()
    here = Member(rank, node, platform.node(), os.getpid(), diagnosis.kernel_kills())
    members: list[Any] = [here]
    if world > 1:
        members = [None] * world
        dist.all_gather_object(members, here)
    if rank == 0:
        relay.push.remote(("workers", members, ray.util.get_current_placement_group()))
