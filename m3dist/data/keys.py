"""Interactions as sorted int64 keys user * n_items + item: distinct, in one split only, counted by what was dropped.

Shapes: n interactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from m3dist.data.dataset import SPLITS, DataError

_PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))
ROWS = 1 << 20  # of a row group


@dataclass(frozen=True)
class Origin:
    """Where interactions came from, for messages: the file of each split, original ids by dense id."""

    files: Mapping[str, str] = field(default_factory=dict)
    user_ids: Any = None
    item_ids: Any = None

    def label(self, split: str) -> str:
        """The file of a split."""
        return self.files.get(split) or f"split {split!r}"


@dataclass(frozen=True)
class Overlap:
    """Pairs that stand in two splits: how many, the key of the first (-1: none), what is left of the later split."""

    count: int = 0
    first: int = -1
    left: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        """Of two ranges of users, of which `other` stands behind."""
        first = self.first if self.first >= 0 else other.first
        return Overlap(self.count + other.count, first, self.left + other.left)


@dataclass
class Counted:
    """What was dropped from interactions: duplicates by split, and overlaps by two splits. given: rows by split."""

    given: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    overlaps: dict[tuple[str, str], Overlap] = field(default_factory=lambda: dict.fromkeys(_PAIRS, Overlap()))

    def __add__(self, other: Counted) -> Counted:
        """Of two ranges of users, of which `other` stands behind."""
        return Counted(
            {split: self.given[split] + other.given[split] for split in SPLITS},
            {split: self.duplicates[split] + other.duplicates[split] for split in SPLITS},
            {pair: self.overlaps[pair] + other.overlaps[pair] for pair in _PAIRS},
        )

    def check(self, overlap: str, n_items: int, origin: Origin) -> dict[str, int]:
        """How many pairs were dropped from each split because an earlier one has them.

        overlap: "error" or "drop", see Writer.interactions. Raises DataError, also where a split is left empty.
        """
        for split in SPLITS:
            need_rows(split, self.given[split], origin)
        dropped = dict.fromkeys(SPLITS, 0)
        for (a, b), found in self.overlaps.items():
            if found.count and overlap != "drop":
                u, i = divmod(found.first, n_items)
                raise DataError(
                    f"{origin.label(a)} and {origin.label(b)}: {a} and {b} overlap in {found.count} interactions, the "
                    f"first is user {_original(origin.user_ids, u)!r}, item {_original(origin.item_ids, i)!r}; a pair "
                    "may stand in one split only (--overlap drop keeps it in train before val before test)"
                )
            dropped[b] += found.count
            if not found.left:
                raise DataError(f"{origin.label(b)}: {b} is empty once the pairs that stand in {a} are dropped")
        return dropped


@dataclass(frozen=True)
class Stored:
    """Keys by split, sorted and distinct, in blocks of any size, and what was dropped on the way."""

    keys: Mapping[str, Iterable[np.ndarray]]
    counted: Counted


def settle(splits: Mapping[str, tuple[np.ndarray, np.ndarray]], n_items: int) -> Stored:
    """Keys of dense (user, item) pairs by split; a pair stays in train before val before test."""
    keys: dict[str, np.ndarray] = {}
    counted = Counted({split: len(splits[split][0]) for split in SPLITS})
    for split in SPLITS:
        keys[split], counted.duplicates[split] = _unique(*splits[split], n_items)
    for a, b in _PAIRS:
        both = _in_sorted(keys[b], keys[a])
        count, first = int(both.sum()), -1
        if count:
            first = int(keys[b][both][0])
            keys[b] = keys[b][~both]
        counted.overlaps[a, b] = Overlap(count, first, len(keys[b]))
    return Stored({split: [key] for split, key in keys.items()}, counted)


def need_rows(split: str, count: int, origin: Origin) -> None:
    """Raises DataError where a split has no rows."""
    if not count:
        raise DataError(f"{origin.label(split)}: {split} is empty; every split needs interactions")


def recut(blocks: Iterable[np.ndarray], rows: int = ROWS) -> Iterator[np.ndarray]:
    """The same values in blocks of `rows`, the last of what is left."""
    held: list[np.ndarray] = []
    count = 0
    for block in blocks:
        while len(block):
            held.append(block[: rows - count])
            count += len(held[-1])
            block = block[len(held[-1]) :]
            if count == rows:
                yield np.concatenate(held) if len(held) > 1 else held[0]
                held, count = [], 0
    if held:
        yield np.concatenate(held)


def _unique(user: np.ndarray, item: np.ndarray, n_items: int) -> tuple[np.ndarray, int]:
    """Sorted distinct int64 keys user * n_items + item, and how many duplicates there were."""
    key = user.astype(np.int64)
    key *= n_items
    key += item
    key.sort()
    fresh = np.ones(len(key), dtype=bool)
    np.not_equal(key[1:], key[:-1], out=fresh[1:])
    duplicates = int(len(key) - np.count_nonzero(fresh))
    return (key[fresh] if duplicates else key), duplicates


def _in_sorted(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """bool [n]: which sorted distinct `values` stand in the sorted distinct `table`; work follows the shorter."""
    found = np.zeros(len(values), dtype=bool)
    if not len(values) or not len(table):
        return found
    if len(values) <= len(table):
        at = np.minimum(np.searchsorted(table, values), len(table) - 1)
        return table[at] == values
    at = np.minimum(np.searchsorted(values, table), len(values) - 1)
    found[at[values[at] == table]] = True
    return found


def _original(ids: Any, dense: int) -> Any:
    """The original id of a dense id, as a plain value."""
    if ids is None:
        return dense
    value = ids[dense]
    return value.as_py() if isinstance(value, pa.Scalar) else getattr(value, "item", lambda: value)()
