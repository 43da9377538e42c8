"""Recommendations of many users in parts: a file each, by this process or by Ray actors; again, only what is missing.

OUT holds part-00000-of-00016.parquet and so on, and parts.json, which says what they are of. Every part is of
consecutive users, does not depend on who makes it, and appears whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from m3dist.config import digest
from m3dist.run_folder import Finished
from m3dist.serving.rules import Rules
from m3dist.serving.run import Run
from m3dist.storage.folders import Folder


@dataclass(frozen=True)
class Request:
    """What is asked of a run, as `Run.recommend` takes it. users: original ids; new_items: a folder, see
    `Run.add_items`."""

    run: str
    k: int = 20
    users: list[Any] = field(default_factory=list)
    histories: Mapping[Any, list[Any]] | None = None
    rules: Rules = field(default_factory=Rules)
    reasons: bool = False
    new_items: str | None = None

    def open(self, device: str | torch.device = "auto") -> Run:
        """The run, with its new items."""
        run = Run(self.run, device)
        return run.add_items(self.new_items) if self.new_items else run

    def part(self, at: int, parts: int) -> tuple[list[Any] | None, dict[Any, list[Any]] | None]:
        """Users and histories of one of the parts. Who has both is where the history is."""
        if self.histories is None:
            return _cut(self.users, at, parts), None
        names = {str(name) for name in self.histories}
        mine = _cut([*self.histories], at, parts)
        here = {str(name) for name in mine}
        alone = _cut([user for user in self.users if str(user) not in names], at, parts)
        both = [user for user in self.users if str(user) in here]
        return [*alone, *both], {name: list(self.histories[name]) for name in mine}


def _cut(values: list[Any], at: int, parts: int) -> list[Any]:
    """The `at`-th of so many consecutive parts of about equal size."""
    return values[len(values) * at // parts : len(values) * (at + 1) // parts]


@dataclass(frozen=True)
class Parts:
    """Where the parts go and how many there are. workers: Ray actors; 0: this process makes them. gpus: of each."""

    out: str
    count: int
    workers: int = 0
    gpus: float = 0.0

    def name(self, at: int) -> str:
        return f"part-{at:05d}-of-{self.count:05d}.parquet"


class Maker:
    """Makes parts of one request."""

    def __init__(self, request: Request, parts: Parts, device: str | torch.device = "auto"):
        self.request, self.parts, self.run = request, parts, request.open(device)

    def make(self, at: int) -> int:
        """Write a part; its number of rows."""
        request = self.request
        users, histories = request.part(at, self.parts.count)
        table = self.run.recommend(users, request.k, histories, request.rules, request.reasons)
        with Folder(self.parts.out).writing(self.parts.name(at)) as path:
            pq.write_table(table, path)
        return table.num_rows


def _opened(tensors: dict[str, Tensor], device: torch.device, request: Request, parts: Parts) -> Maker:
    return Maker(request, parts, device)


def _made(maker: Maker, at: int) -> int:
    return maker.make(at)


def write(request: Request, parts: Parts, say: Callable[[str], None]) -> None:
    """Make the parts that are not there yet.

    Raises ValueError where the folder holds parts of another request, or there are fewer users than parts.
    """
    folder, size = Folder(parts.out), len(request.histories or ()) or len(request.users)
    if parts.count > size:
        raise ValueError(f"parts: {parts.count} parts of {size} users; ask for at most {size}")
    described = {
        "run": Finished.of(request.run).key,
        "parts": parts.count,
        "request": digest([request.k, request.users, request.histories, request.rules, request.reasons]),
        "new_items": request.new_items,
    }
    if folder.exists("parts.json"):
        if folder.read_json("parts.json") != described:
            raise ValueError(f"out={folder}: holds parts of another run or request; choose another folder or delete it")
    else:
        folder.make()
        folder.write_json("parts.json", described)
    there = set(folder.names())
    missing = [at for at in range(parts.count) if parts.name(at) not in there]
    began = time.perf_counter()
    if parts.workers and missing:
        from m3dist.distributed.actors import ActorSettings, Pool

        settings = ActorSettings(min(parts.workers, len(missing)), {"GPU": parts.gpus} if parts.gpus else {})
        with Pool(_opened, {}, settings, request, parts) as pool:
            rows = pool.map(_made, [(at,) for at in missing])
    else:
        maker = Maker(request, parts) if missing else None
        rows = [maker.make(at) for at in missing] if maker else []
    seconds = time.perf_counter() - began
    users = round(size * len(missing) / parts.count)
    say(
        f"{len(missing)} of {parts.count} parts, {sum(rows):,} recommendations: {folder}"
        + (f" ({users / seconds:,.0f} users/s)" if missing else "")
    )
