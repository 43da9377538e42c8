"""Splits of interactions that come without one. All strategies drop duplicates first and depend on the seed,
the users and the items only, never on the order of the file.

Work goes through blocks of users, so memory is the interactions, their split copy and one block.
Shapes: n interactions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers.ids import Growing
from m3dist.seeding import derive

STRATEGIES = ("random", "leave-last-out", "temporal")
Splits = dict[str, tuple[np.ndarray, np.ndarray]]
_BLOCK = 1 << 22  # interactions of a block of users


@dataclass
class Interactions:
    """Dense ids, int32 [n] each, and times float64 [n] where they are known."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None = None


@dataclass(frozen=True)
class Plan:
    """How to split interactions that come without a split.

    strategy: one of STRATEGIES; None: the data is split already.
    ratios: shares of train, val and test; those of val and test may be 0 where `cold` fills them.
    cold: share of the items whose interactions are all held out, half of these items in val, half in test.
    """

    strategy: str | None = None
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    cold: float = 0.0

    def check(self) -> None:
        """Raises DataError where the plan is none."""
        if self.strategy not in (None, *STRATEGIES):
            raise DataError(f"split strategy {self.strategy!r}: expected one of {', '.join(STRATEGIES)}")
        least = 0 if self.cold else 1e-12
        if self.ratios[0] <= 0 or min(self.ratios) < least or abs(sum(self.ratios) - 1) > 1e-6:
            raise DataError(
                f"split ratios {self.ratios}: expected three positive shares of train, val, test that add up to 1"
            )
        if not 0 <= self.cold < 1:
            raise DataError(f"cold share {self.cold:g}: expected at least 0 and under 1 (--cold)")
        if self.cold and self.strategy is None:
            raise DataError("--cold chooses the items of val and test, so it needs --split for the other interactions")


def split(data: Interactions, plan: Plan, source: str) -> tuple[Splits, int]:
    """The splits, and how many duplicates were dropped. `data` is emptied, so that its memory can go.

    random          each user's interactions are shuffled and cut by the ratios (a user too small for a share of
                    val or test stays in train)
    leave-last-out  the last interaction of each user is test, the one before val; users with under three train
    temporal        all interactions in order of time, cut by the ratios
    Of duplicates the earliest stays. With plan.cold, items are held out first and the strategy splits the rest.
    Raises DataError.
    """
    plan.check()
    strategy = plan.strategy or ""
    if strategy != "random" and data.time is None:
        raise DataError(f"{source}: split {strategy!r} needs times; name their column with --time-column")
    if strategy == "random":
        data.time = None
    n = len(data.user)
    held_I = _held_out_items(data.item, plan, source) if plan.cold else None
    parts = {name: (Growing(), Growing()) for name in SPLITS}
    times = Growing(np.float64)
    for user, item, time in _user_blocks(data):
        labels = np.zeros(len(user), dtype=np.int8) if held_I is None else held_I[item]
        rest: slice | np.ndarray = slice(None) if held_I is None else np.flatnonzero(labels == 0)
        user_r, item_r, time_r = user[rest], item[rest], time[rest]
        if strategy == "temporal":
            times.append(time_r)
        else:
            # by user, then by time or at random, then by item
            order_key = _shuffle_keys(user_r, item_r, derive(plan.seed, "split")) if strategy == "random" else time_r
            order = np.lexsort((item_r, order_key, user_r))
            chosen = np.empty(len(user_r), dtype=np.int8)
            chosen[order] = _within_users(user_r[order], strategy, plan.ratios)
            labels[rest] = chosen
        for code, name in enumerate(SPLITS):
            where = labels == code
            parts[name][0].append(user[where])
            parts[name][1].append(item[where])
    data.user = data.item = np.empty(0, dtype=np.int32)
    data.time = None
    splits = {name: (user.take(), item.take()) for name, (user, item) in parts.items()}
    kept = sum(len(user) for user, _ in splits.values())
    if strategy == "temporal":
        labels = _by_time(times.take(), plan.ratios)
        user, item = splits["train"]
        cut = {name: (user[labels == code], item[labels == code]) for code, name in enumerate(SPLITS)}
        if held_I is not None:
            for name in ("val", "test"):
                (user, item), (cold_user, cold_item) = cut[name], splits[name]
                cut[name] = np.concatenate([user, cold_user]), np.concatenate([item, cold_item])
        splits = cut
    return splits, n - kept


def _held_out_items(item: np.ndarray, plan: Plan, source: str) -> np.ndarray:
    """int8 [I]: 1 for items that are held out in val, 2 in test, 0 for the others. Chosen by the seed and the item."""
    seen = np.flatnonzero(np.bincount(item))
    count = round(plan.cold * len(seen))
    if not 2 <= count < len(seen):
        raise DataError(
            f"{source}: --cold {plan.cold:g} of {len(seen)} items is {count}; expected at least one for val, one for "
            "test and one for train"
        )
    keys = _shuffle_keys(np.zeros(len(seen), dtype=np.int32), seen, derive(plan.seed, "cold"))
    chosen = seen[np.argsort(keys)[:count]]
    held_I = np.zeros(int(seen[-1]) + 1, dtype=np.int8)
    held_I[chosen[: count // 2]] = 1
    held_I[chosen[count // 2 :]] = 2
    return held_I


def _user_blocks(data: Interactions) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Distinct interactions sorted by user and item, in blocks of whole users; of duplicates the earliest."""
    if not len(data.user):
        return
    ends = np.cumsum(np.bincount(data.user))
    start = done = 0
    while start < len(ends):
        # as many users as fit the block, at least one
        stop = max(int(np.searchsorted(ends, done + _BLOCK, side="right")), start + 1)
        if start == 0 and stop == len(ends):
            chosen: slice | np.ndarray = slice(None)
        else:
            chosen = np.flatnonzero((data.user >= start) & (data.user < stop))
        user, item = data.user[chosen], data.item[chosen]
        time = data.time[chosen] if data.time is not None else np.zeros(len(user))
        order = np.lexsort((time, item, user)) if data.time is not None else np.lexsort((item, user))
        user, item, time = user[order], item[order], time[order]
        first = np.ones(len(user), dtype=bool)
        first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
        yield user[first], item[first], time[first]
        start, done = stop, int(ends[stop - 1])


def _shuffle_keys(user: np.ndarray, item: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [n]: a random number of each (seed, user, item), the same wherever the pair stands (SplitMix64)."""
    key = (user.astype(np.uint64) << np.uint64(32)) | item.astype(np.uint64)
    key *= np.uint64(0x9E3779B97F4A7C15)
    key += np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key ^= key >> np.uint64(shift)
        key *= np.uint64(factor)
    key ^= key >> np.uint64(31)
    return key


def _within_users(user: np.ndarray, strategy: str, ratios: tuple[float, float, float]) -> np.ndarray:
    """Split code of interactions sorted by user and, within a user, in the order to cut. int8 [n]."""
    _, begin, count = np.unique(user, return_index=True, return_counts=True)
    left = np.repeat(begin + count, count) - np.arange(len(user))  # 1 for a user's last interaction
    if strategy == "leave-last-out":
        test = (count >= 3).astype(np.int64)
        val = test
    else:
        # 1e-9: 0.1 * 10 is one interaction, whatever the rounding of the ratio
        test = np.floor(count * ratios[2] + 1e-9).astype(np.int64)
        val = np.floor(count * ratios[1] + 1e-9).astype(np.int64)
    test, val = np.repeat(test, count), np.repeat(val, count)
    labels = np.zeros(len(user), dtype=np.int8)
    labels[left <= test + val] = 1
    labels[left <= test] = 2
    return labels


def _by_time(time: np.ndarray, ratios: tuple[float, float, float]) -> np.ndarray:
    """Split code by global order of time; ties go by user and item, the order of `time`. int8 [n]."""
    n = len(time)
    labels = np.zeros(n, dtype=np.int8)
    for share in (ratios[0], ratios[0] + ratios[1]):
        cut = round(n * share)
        if cut >= n:
            continue
        bound = np.partition(time, cut)[cut]
        late = time > bound
        ties = np.flatnonzero(time == bound)
        late[ties[cut - int(np.count_nonzero(time < bound)) :]] = True
        labels += late
    return labels
