"""Rows that cannot be used: refused with their file and line, or dropped and counted by reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from m3dist.data.dataset import DataError

Where = Callable[[int], str]  # position in a batch -> "train.tsv, line 7"


class BadRows:
    """What happens to rows that cannot be used, and what happened: counts by reason, and where the first is."""

    def __init__(self, drop: bool = False):
        self.drop = drop
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, reason: str, count: int, first: str) -> None:
        """Count rows that were left out."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, first)

    def refuse(self, reason: str, first: str, message: str) -> None:
        """Count one row, or raise DataError: `first` says where it stands, `message` what was read and expected."""
        if not self.drop:
            raise DataError(f"{first}: {message}; --on-bad-row drop leaves such rows out")
        self.add(reason, 1, first)

    def notes(self) -> list[str]:
        return [f"left out {n:,} rows: {reason} (the first: {self.first[reason]})" for reason, n in self.counts.items()]


class Rows:
    """The rows of a batch while its columns are read. kept: bool [b], False where a row was dropped."""

    def __init__(self, count: int, where: Where, bad: BadRows):
        self.where, self.bad = where, bad
        self.kept = np.ones(count, dtype=bool)

    def refuse(self, at: np.ndarray, reason: str, message: Callable[[int], str]) -> None:
        """Drop the rows `at` (bool [b], or positions) that are still kept, or raise DataError about the first.

        message: what was read at a position, and what was expected.
        """
        mask = np.zeros(len(self.kept), dtype=bool)
        mask[at] = True
        mask &= self.kept
        if not mask.any():
            return
        first = int(np.flatnonzero(mask)[0])
        self.bad.refuse(reason, self.where(first), message(first))
        self.bad.counts[reason] += int(mask.sum()) - 1
        self.kept &= ~mask
