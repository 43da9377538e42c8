"""Rows of tables, and what is kept of each interaction, in files of their own, one of each worker that holds a part;
read by range.

Nothing in them speaks of how many workers there are now: any number of workers reads the rows that it wants.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from m3dist.storage import safe
from m3dist.storage.folders import Folder


def _file(shard: int, shards: int) -> str:
    return f"rows-{shard:05d}-of-{shards:05d}.safetensors"


@dataclass(frozen=True)
class Shards:
    """The files of `count` workers in a folder, each with a contiguous part of every table, in their order."""

    folder: Folder
    count: int

    def write(self, rank: int, rows: dict[str, Tensor]) -> None:
        """One worker's part of every table."""
        self.folder.write_tensors(_file(rank, self.count), rows)

    def read(self, name: str, out_rd: Tensor, low: int, counts: Sequence[int]) -> None:
        """Rows low.. of a table into `out_rd`, or numbers low.. of a series. counts: how many of them each file has.

        Raises OSError, ValueError or SafetensorError where a file is missing or damaged.
        """
        for shard, (first, last) in enumerate(itertools.pairwise([0, *itertools.accumulate(counts)])):
            start, end = max(first, low), min(last, low + len(out_rd))
            if start >= end:
                continue
            with self.folder.local(_file(shard, self.count)) as path, safe.Reader(path) as file:
                file.rows(name, start - first, out_rd[start - low : end - low])
