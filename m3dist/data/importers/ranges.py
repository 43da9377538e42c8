"""Ranges of users: what each decides by itself once the files of a source are shuffled, and what all must add up.

Everything goes through files of a range, so a task that died is done again with the same result.
Shapes: n rows of a range, I items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3dist.data import keys
from m3dist.data.dataset import SPLITS
from m3dist.data.importers import splits as sp
from m3dist.data.importers.layout import UNSPLIT
from m3dist.data.importers.scan import NAMES, mapped

DIGIT = 16  # bits of a time that one count looks at
DIGITS = 64 // DIGIT


@dataclass(frozen=True)
class Range:
    """A range of users. folders: of the scanned files, in order; times: their type, None without; folder: its own."""

    number: int
    users: tuple[int, int]
    n_items: int
    folders: tuple[Path, ...]
    times: type | None
    folder: Path


@dataclass(frozen=True)
class Keep:
    """Who stays: bool [U] and [I]."""

    users: np.ndarray
    items: np.ndarray

    def renumbered(self, user: np.ndarray, item: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """The dense ids among those who stay of users in low..high-1 and of items, all of whom stay."""
        new_U = np.cumsum(self.users[low:high], dtype=np.int32) + np.int32(np.count_nonzero(self.users[:low]) - 1)
        new_I = np.cumsum(self.items, dtype=np.int32) - np.int32(1)
        return new_U[user - low], new_I[item]


@dataclass(frozen=True)
class Divided:
    """A range's interactions by split: rows before and after duplicates were dropped, and what else was counted."""

    rows: int
    kept: dict[str, int]
    small: int
    counted: keys.Counted


def rows(given: Range, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and time (or number of the row) of a range's rows of one split, as the files have them."""
    kinds: dict[str, type] = {"user": np.int32, "item": np.int32, "time": np.int64}
    if given.times is not None and name == UNSPLIT:
        kinds["time"] = given.times
    out: list[list[np.ndarray]] = [[], [], []]
    for folder in given.folders:
        columns = [mapped(folder / f"{name}.{what}.by", kind) for what, kind in kinds.items()]
        for at in np.load(folder / f"{name}.at.npy"):
            here = slice(int(at[given.number]), int(at[given.number + 1]))
            for held, column in zip(out, columns, strict=True):
                held.append(np.asarray(column[here]))
    user, item, time = (np.concatenate([np.empty(0, kind), *c]) for kind, c in zip(kinds.values(), out, strict=True))
    return user, item, time


def degrees(given: Range, keep: Keep) -> tuple[np.ndarray, np.ndarray]:
    """Interactions of each user of the range and of each item among who stays; a pair counts once."""
    path = given.folder / "pairs.npy"
    if not path.exists():
        found = [rows(given, name)[:2] for name in NAMES]
        key = np.unique(np.concatenate([user.astype(np.int64) * given.n_items + item for user, item in found]))
        given.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, key)
        part.replace(path)
    user, item = np.divmod(np.load(path), given.n_items)
    kept = keep.users[user] & keep.items[item]
    low, high = given.users
    return (
        np.bincount(user[kept] - low, minlength=high - low),
        np.bincount(item[kept], minlength=given.n_items),
    )


def seen(given: Range, keep: Keep | None) -> np.ndarray:
    """Which items occur in a range, bool [I] of those who stay."""
    out = np.zeros(int(keep.items.sum()) if keep else given.n_items, dtype=bool)
    out[_kept(given, UNSPLIT, keep)[1]] = True
    return out


def _kept(given: Range, name: str, keep: Keep | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    user, item, time = rows(given, name)
    if keep is None:
        return user, item, time
    at = keep.users[user] & keep.items[item]
    return *keep.renumbered(user[at], item[at], *given.users), time[at]


def divide(given: Range, plan: sp.Plan, keep: Keep | None, held_I: np.ndarray | None) -> Divided:
    """Split a range by the plan, or as the files say, and keep its sorted keys; temporal ones wait for `cut`."""
    n_items = int(keep.items.sum()) if keep else given.n_items
    given.folder.mkdir(parents=True, exist_ok=True)
    if not plan.split:
        found = {name: _kept(given, name, keep)[:2] for name in SPLITS}
        total = sum(len(user) for user, _ in found.values())
        return Divided(total, dict.fromkeys(SPLITS, 0), 0, _store(given.folder, keys.settle(found, n_items)))
    user, item, time = _kept(given, UNSPLIT, keep)
    data = sp.Interactions(user, item, time if plan.split != "random" else None)
    total = len(user)
    del user, item, time
    chosen = sp.of_users(data, plan, held_I)
    kept = {name: len(user) for name, (user, _) in chosen.splits.items()}
    counted = _store(given.folder, keys.settle(chosen.splits, n_items))
    if plan.split == "temporal":
        np.save(given.folder / "time.npy", chosen.times)
    return Divided(total, kept, chosen.small, counted)


def _store(folder: Path, found: keys.Stored) -> keys.Counted:
    for split, blocks in found.keys.items():
        np.save(folder / f"{split}.npy", np.concatenate(list(blocks)))
    return found.counted


def stored(given: Range, split: str) -> np.ndarray:
    """The keys of a range's split, mapped."""
    late = given.folder / f"{split}.cut.npy"
    return np.load(late if late.exists() else given.folder / f"{split}.npy", mmap_mode="r")


@dataclass(frozen=True)
class Late:
    """Which times are late: those over `bound` (as `ordered` has it), and of those at it all but the first `skip`."""

    bound: int
    skip: int


def ordered(time: np.ndarray) -> np.ndarray:
    """uint64 [n] in the order of int64 or float64 times."""
    if time.dtype.kind == "f":
        bits = (time + 0.0).view(np.uint64)  # -0.0 is 0.0
        return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))
    return time.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63)


def digits(given: Range, prefix: tuple[int, int], before: float | None) -> np.ndarray:
    """How often each next digit occurs among times that begin with the `prefix` (its value, how many digits it has).

    before: count only times before this one. int64 [2^16].
    """
    time = np.load(given.folder / "time.npy")
    key = ordered(time[time < before] if before is not None else time)
    value, length = prefix
    if length:
        key = key[key >> np.uint64(64 - DIGIT * length) == np.uint64(value)]
    digit = (key >> np.uint64(64 - DIGIT * (length + 1))) & np.uint64((1 << DIGIT) - 1)
    return np.bincount(digit.astype(np.int64), minlength=1 << DIGIT)


def cut(given: Range, fixed: sp.Cuts, late: list[Late]) -> dict[str, int]:
    """Move a range's late interactions out of train; how many each split has then."""
    time, pairs = np.load(given.folder / "time.npy"), np.load(given.folder / "train.npy")
    labels, key = np.zeros(len(time), dtype=np.int8), ordered(time)
    for bound in late:
        labels += key > np.uint64(bound.bound)
        labels[np.flatnonzero(key == np.uint64(bound.bound))[bound.skip :]] += 1
    if fixed.test is not None:
        if fixed.val is not None:
            labels[time >= fixed.val] = 1
        labels[time >= fixed.test] = 2
    counts = {}
    for code, split in enumerate(SPLITS):
        mine = pairs[labels == code]
        if split != "train":
            mine = np.sort(np.concatenate([mine, np.load(given.folder / f"{split}.npy")]))
        np.save(given.folder / f"{split}.cut.npy", mine)
        counts[split] = len(mine)
    return counts
