"""Checkpoints inside a stage: a folder of tensors and plain values each, complete when its meta.json is there.

Nothing in them speaks of workers, DDP or DeepSpeed: tensors are whole and named as in the model, so any number of
workers under any strategy goes on from them. Rows of tables are in files of their own, one of each worker where tables
are sharded, and are read by range.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from m3dist import config as configs
from m3dist.data.sampling import share
from m3dist.distributed.engine import Engine
from m3dist.storage.folders import Folder


@dataclass(frozen=True)
class Saved:
    """One checkpoint: plain values, and where its tensors are."""

    meta: dict[str, Any]
    folder: Folder

    def tensors(self, name: str = "state") -> dict[str, Tensor]:
        """Raises ValueError when the file is damaged."""
        try:
            return self.folder.read_tensors(f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            raise self._damaged(error) from None

    def read(self, name: str, out_rd: Tensor, low: int, n: int) -> None:
        """Rows low.. of a table of n rows into `out_rd`, from the files of however many workers wrote them.

        Raises ValueError when a file is damaged.
        """
        shards = self.meta.get("shards", 0)
        if not shards:
            raise self._damaged("written by an older version")
        for shard in range(shards):
            first, last = share(n, shard, shards)
            start, end = max(first, low), min(last, low + len(out_rd))
            if start >= end:
                continue
            try:
                with self.folder.local(_rows(shard, shards)) as path, safe_open(path, "pt") as file:
                    out_rd[start - low : end - low] = file.get_slice(name)[start - first : end - first]
            except (OSError, SafetensorError) as error:
                raise self._damaged(error) from None

    def _damaged(self, why: object) -> ValueError:
        return ValueError(f"{self.folder}: damaged checkpoint ({why}); delete the folder and train again")


def _rows(shard: int, shards: int) -> str:
    return f"rows-{shard:05d}-of-{shards:05d}.safetensors"


class Checkpoints:
    """The checkpoints of one stage of one run; every worker calls its methods alike, rank 0 writes.

    key: of the stage. config: how often and how many. A checkpoint may lean on others by name (`needs`), which are
    kept with it.
    """

    def __init__(self, folder: Folder, key: str, config: configs.Checkpoint, engine: Engine):
        self.folder, self.key, self.config, self.engine = folder, key, config, engine
        self._last = time.monotonic()

    def overdue(self) -> bool:
        """Whether `every_minutes` have passed on this worker's clock since the last save."""
        minutes = self.config.every_minutes
        return minutes > 0 and time.monotonic() - self._last >= 60 * minutes

    def due_after(self, epoch: int) -> bool:
        """Whether the end of this epoch is a time to save."""
        every = self.config.every_epochs
        return every > 0 and (epoch + 1) % every == 0

    def latest(self) -> Saved | None:
        """The newest complete checkpoint."""
        for name in reversed(self._numbered()):
            if (self.folder / name).exists("meta.json"):
                return Saved((self.folder / name).read_json("meta.json"), self.folder / name)
        return None

    def open(self, name: str) -> Saved:
        return Saved((self.folder / name).read_json("meta.json"), self.folder / name)

    def save(
        self,
        name: str,
        meta: dict[str, Any],
        tensors: dict[str, Tensor],
        rows: dict[str, Tensor] | None = None,
        sharded: bool = False,
        needs: list[str] | None = None,
    ) -> None:
        """Write a checkpoint and drop those that are no longer kept.

        name: sorts after those before it and starts with a digit, unless it is one that others need. tensors:
        rank 0's, whole. rows: of tables, this worker's share where they are `sharded` and all of them elsewhere.
        """
        folder = self.folder / name
        shard, shards = (self.engine.rank, self.engine.world) if sharded else (0, 1)
        if sharded or self.engine.rank_zero:
            folder.write_tensors(_rows(shard, shards), rows or {})
        self.engine.barrier()
        if self.engine.rank_zero:
            folder.write_tensors("state.safetensors", tensors)
            folder.write_json("meta.json", {**meta, "shards": shards, "needs": needs or []})
            if name[0].isdigit():
                self._prune()
        self.engine.barrier()
        self._last = time.monotonic()

    def clear(self) -> None:
        """Delete all of them; the stage is done."""
        if self.engine.rank_zero:
            self.folder.remove()

    def _numbered(self) -> list[str]:
        return [name for name in self.folder.names() if name[0].isdigit()]

    def _prune(self) -> None:
        kept = [name for name in self._numbered() if (self.folder / name).exists("meta.json")][-self.config.keep :]
        needed = {need for name in kept for need in (self.folder / name).read_json("meta.json")["needs"]}
        for name in self.folder.names():
            if name not in kept and name not in needed:
                self.folder.remove(name)
