"""Checkpoints inside a stage: a folder of tensors and plain values each, complete when its meta.json is there.

Nothing in them speaks of workers, DDP or DeepSpeed: tensors are whole and named as in the model, so any number of
workers under any strategy goes on from them. Rows of tables, and what is kept of each interaction, are in files of
their own, one of each worker that holds a part, and are read by range.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from m3dist import config as configs
from m3dist.distributed.engine import Engine
from m3dist.storage.artifacts import DIGEST
from m3dist.storage.folders import Folder
from m3dist.storage.shards import Shards


@dataclass(frozen=True)
class Saved:
    """One checkpoint: plain values, and where its tensors are."""

    meta: dict[str, Any]
    folder: Folder

    def tensors(self, name: str = "state") -> dict[str, Tensor]:
        """Raises ValueError when the file is damaged."""
        try:
            return self.folder.read_tensors(f"{name}.safetensors", self.meta.get(DIGEST))
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(error) from None

    def read(self, name: str, out_rd: Tensor, low: int) -> None:
        """Rows low.. of a table, or numbers low.. of a series, into `out_rd` from the files of however many workers.

        Raises ValueError when a file is damaged.
        """
        try:
            counts = self.meta["rows"][name]
            Shards(self.folder, len(counts)).read(name, out_rd, low, counts)
        except (OSError, ValueError, SafetensorError, LookupError, RuntimeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, why: object) -> ValueError:
        return ValueError(f"{self.folder}: damaged checkpoint ({why}); delete the folder and train again")


@dataclass(frozen=True)
class Rows:
    """Of tables, and of series with a number for each interaction. whole: of those that every worker has alike, all
    rows, which rank 0 writes; parts: of those that workers share out, the ones that this worker holds."""

    whole: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)


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
                return self.open(name)
        return None

    def open(self, name: str) -> Saved:
        """Raises ValueError when it is damaged."""
        saved = Saved({}, self.folder / name)
        try:
            return replace(saved, meta=saved.folder.read_json("meta.json"))
        except (OSError, ValueError) as error:
            raise saved._damaged(error) from None

    def save(
        self,
        name: str,
        meta: dict[str, Any],
        tensors: dict[str, Tensor],
        rows: Rows | None = None,
        needs: Sequence[str] = (),
    ) -> None:
        """Write a checkpoint and drop those that are no longer kept.

        name: sorts after those before it and starts with a digit, unless it is one that others need. tensors: rank
        0's, whole. needs: checkpoints that it leans on.
        """
        folder, rows, engine = self.folder / name, rows or Rows(), self.engine
        mine = rows.whole | rows.parts if engine.rank_zero else rows.parts
        shards = engine.world if rows.parts else 1
        if rows.parts or engine.rank_zero:
            Shards(folder, shards).write(engine.rank, mine)
        each = engine.collect({name: len(x) for name, x in mine.items()})[:shards]
        if self.engine.rank_zero:
            digest = folder.write_tensors("state.safetensors", tensors)
            counts = {name: [count.get(name, 0) for count in each] for name in mine}
            folder.write_json("meta.json", {**meta, "rows": counts, "needs": [*needs], DIGEST: digest})
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
