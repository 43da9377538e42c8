"""Splits of interactions that come without one. All strategies drop duplicates first and depend on the seed,
the users, the items and the times; only leave-last-out looks at the order of the file, where times are equal.

Work goes through blocks of users, so memory is the interactions, their split copy and one block.
Shapes: n interactions, I items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers.ids import Growing
from m3dist.seeding import derive

STRATEGIES = ("random", "leave-last-out", "temporal")
Splits = dict[str, tuple[np.ndarray, np.ndarray]]
_BLOCK = 1 << 22  # interactions of a block of users
_AT_LEAST_ONE = "--at-least-one holds out one for val and one for test of every user who has three"


@dataclass
class Interactions:
    """Dense ids, int32 [n] each, and times [n] where they are known."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None = None


@dataclass(frozen=True)
class Plan:
    """How to split interactions that come without a split, and which of them to keep before.

    split: one of STRATEGIES; None: the data is split already.
    ratios: shares of train, val and test; those of val and test may be 0 where `cold` fills them.
    cold: share of the items whose interactions are all held out, half of these items in val, half in test.
    at_least_one: with random, hold out one for val and one for test of every user who has three.
    val_from, test_from: with temporal, where val and test begin, in place of shares.
    file_order: rows stand in order of time, and no column says it.
    min_user, min_item: keep users and items with at least so many interactions, again and again until all have them.
    """

    split: str | None = None
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    cold: float = 0.0
    at_least_one: bool = False
    val_from: str | None = None
    test_from: str | None = None
    file_order: bool = False
    min_user: int = 0
    min_item: int = 0

    @property
    def needs_times(self) -> bool:
        return self.split in ("leave-last-out", "temporal") and not self.file_order

    def check(self) -> None:
        """Raises DataError where the plan is none."""
        if self.split not in (None, *STRATEGIES):
            raise DataError(f"split strategy {self.split!r}: expected one of {', '.join(STRATEGIES)}")
        least = 0 if self.cold else 1e-12
        if self.ratios[0] <= 0 or min(self.ratios) < least or abs(sum(self.ratios) - 1) > 1e-6:
            raise DataError(
                f"split ratios {self.ratios}: expected three positive shares of train, val, test that add up to 1"
            )
        if not 0 <= self.cold < 1:
            raise DataError(f"cold share {self.cold:g}: expected at least 0 and under 1 (--cold)")
        if self.cold and self.split is None:
            raise DataError("--cold chooses the items of val and test, so it needs --split for the other interactions")
        if (self.val_from or self.test_from) and self.split != "temporal":
            raise DataError("--val-from and --test-from say where --split temporal cuts; give that, too")
        if self.val_from and not self.test_from:
            raise DataError("--val-from without --test-from: say where test begins, too")
        if self.at_least_one and self.split != "random":
            raise DataError("--at-least-one belongs to --split random; give that, too")
        if self.file_order and self.split not in ("leave-last-out", "temporal"):
            raise DataError("--file-order belongs to --split leave-last-out or temporal; give one of them, too")


@dataclass(frozen=True)
class Cuts:
    """Where val and test begin, in the unit of the times; None: by share."""

    val: float | None = None
    test: float | None = None


class Split(NamedTuple):
    """Interactions by split, how many duplicates were dropped, and what a person should know."""

    splits: Splits
    duplicates: int
    notes: list[str]


def split(data: Interactions, plan: Plan, source: str, cuts: Cuts | None = None) -> Split:
    """Split by the plan. `data` is emptied, so that its memory can go.

    random          each user's interactions are shuffled and cut by the ratios (a user too small for a share of
                    val or test stays in train, but for plan.at_least_one)
    leave-last-out  the last interaction of each user is test, the one before val, users with under three train;
                    of equal times the later row is the later one
    temporal        all interactions in order of time, cut by the ratios or at `cuts`
    Of duplicates the earliest stays. With plan.cold, items are held out first and the strategy splits the rest.
    source: the file, for messages. Raises DataError.
    """
    plan.check()
    strategy = plan.split or ""
    if plan.needs_times and data.time is None:
        raise DataError(f"{source}: split {strategy!r} needs times; name their column with --time-column")
    if strategy == "random":
        data.time = None
    elif plan.file_order:
        data.time = np.arange(len(data.user), dtype=np.int64)
    n = len(data.user)
    held_I = held_out_items(np.flatnonzero(np.bincount(data.item)), plan, source) if plan.cold else None
    found = of_users(data, plan, held_I)
    splits, kept = found.splits, sum(len(user) for user, _ in found.splits.values())
    if strategy == "temporal":
        splits = _cut_by_time(splits, found.times, plan, cuts or Cuts())
    need_all({name: len(user) for name, (user, _) in splits.items()}, plan, source)
    return Split(splits, n - kept, small_note(found.small))


class Found(NamedTuple):
    """Distinct interactions by split, sorted by user and item; under temporal all but cold ones are in train.

    times: of train under the temporal strategy, else empty; small: users with three who have none in val or in test.
    """

    splits: Splits
    times: np.ndarray
    small: int


def of_users(data: Interactions, plan: Plan, held_I: np.ndarray | None) -> Found:
    """What each user's interactions alone decide. `data` is emptied; its users need not begin at 0.

    held_I: from `held_out_items`.
    """
    strategy = plan.split or ""
    parts = {name: (Growing(), Growing()) for name in SPLITS}
    times, small = Growing(data.time.dtype.type if data.time is not None else np.int64), 0
    for user, item, time, row in _user_blocks(data):
        labels = np.zeros(len(user), dtype=np.int8) if held_I is None else held_I[item]
        rest: slice | np.ndarray = slice(None) if held_I is None else np.flatnonzero(labels == 0)
        user_r, item_r, time_r = user[rest], item[rest], time[rest]
        if strategy == "temporal":
            times.append(time_r)
        else:
            # by user, then by time and row, or at random and by item
            if strategy == "random":
                order = np.lexsort((item_r, _shuffle_keys(user_r, item_r, derive(plan.seed, "split")), user_r))
            else:
                order = np.lexsort((row[rest], time_r, user_r))
            chosen = np.empty(len(user_r), dtype=np.int8)
            chosen[order], few = _within_users(user_r[order], plan)
            labels[rest] = chosen
            small += few
        for code, name in enumerate(SPLITS):
            where = labels == code
            parts[name][0].append(user[where])
            parts[name][1].append(item[where])
    data.user = data.item = np.empty(0, dtype=np.int32)
    data.time = None
    return Found({name: (user.take(), item.take()) for name, (user, item) in parts.items()}, times.take(), small)


def small_note(small: int) -> list[str]:
    """What a person should know of users with three interactions who have none in val or in test."""
    if not small:
        return []
    return [f"{small:,} users with three interactions and more have none in val or in test; {_AT_LEAST_ONE}"]


def _cut_by_time(splits: Splits, time: np.ndarray, plan: Plan, cuts: Cuts) -> Splits:
    """`splits`, whose train part is cut by its times."""
    labels = _by_time(time, plan.ratios, cuts)
    user, item = splits["train"]
    out = {name: (user[labels == code], item[labels == code]) for code, name in enumerate(SPLITS)}
    if plan.cold:
        for name in ("val", "test"):
            (user, item), (cold_user, cold_item) = out[name], splits[name]
            out[name] = np.concatenate([user, cold_user]), np.concatenate([item, cold_item])
    return out


def need_all(counts: dict[str, int], plan: Plan, source: str) -> None:
    """Refuse an empty split, with what helps. counts: interactions by split."""
    empty = next((name for name in SPLITS if not counts[name]), "")
    if not empty:
        return
    if plan.split == "random" and empty != "train":
        needed = int(np.ceil(1 / max(min(plan.ratios[1:]), 1e-9) - 1e-9))
        why = f"no user has the {needed} interactions of which a share is one; {_AT_LEAST_ONE}"
        if plan.at_least_one:
            why = "no user has three interactions; --split temporal cuts by time instead of by user"
    elif plan.split == "leave-last-out":
        why = "no user has three interactions; --split temporal cuts by time instead of by user"
    else:
        why = "the cuts leave nothing there; move --test-from and --val-from, or change --ratios"
    raise DataError(f"{source}: {empty} is empty: {why}")


def held_out_items(seen: np.ndarray, plan: Plan, source: str) -> np.ndarray:
    """int8 [I]: 1 for items that are held out in val, 2 in test, 0 for the others. Chosen by the seed and the item.

    seen: the items that occur, sorted.
    """
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


def _user_blocks(data: Interactions) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Distinct interactions sorted by user and item, in blocks of whole users; of duplicates the earliest.

    User, item, time, and a number that orders them as the file does.
    """
    if not len(data.user):
        return
    low = int(data.user.min())
    ends = np.cumsum(np.bincount(data.user - low if low else data.user))
    start = done = 0
    while start < len(ends):
        # as many users as fit the block, at least one
        stop = max(int(np.searchsorted(ends, done + _BLOCK, side="right")), start + 1)
        if start == 0 and stop == len(ends):
            chosen: slice | np.ndarray = slice(None)
        else:
            chosen = np.flatnonzero((data.user >= low + start) & (data.user < low + stop))
        user, item = data.user[chosen], data.item[chosen]
        time = data.time[chosen] if data.time is not None else np.zeros(len(user))
        order = np.lexsort((time, item, user)) if data.time is not None else np.lexsort((item, user))
        user, item = user[order], item[order]
        first = np.ones(len(user), dtype=bool)
        first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
        order = order[first]
        yield user[first], item[first], time[order], order
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


def _within_users(user: np.ndarray, plan: Plan) -> tuple[np.ndarray, int]:
    """Split code of interactions sorted by user and, within a user, in the order to cut, int8 [n].

    And how many users with three interactions have none of them in val or in test.
    """
    _, begin, count = np.unique(user, return_index=True, return_counts=True)
    left = np.repeat(begin + count, count) - np.arange(len(user))  # 1 for a user's last interaction
    if plan.split == "leave-last-out":
        test = (count >= 3).astype(np.int64)
        val = test
    else:
        # 1e-9: 0.1 * 10 is one interaction, whatever the rounding of the ratio
        test = np.floor(count * plan.ratios[2] + 1e-9).astype(np.int64)
        val = np.floor(count * plan.ratios[1] + 1e-9).astype(np.int64)
        if plan.at_least_one:
            test = np.maximum(test, count >= 3)
            val = np.minimum(np.maximum(val, count >= 3), np.maximum(count - test - 1, 0))
    few = int(((count >= 3) & (np.minimum(test, val) == 0)).sum()) if min(plan.ratios) else 0
    test, val = np.repeat(test, count), np.repeat(val, count)
    labels = np.zeros(len(user), dtype=np.int8)
    labels[left <= test + val] = 1
    labels[left <= test] = 2
    return labels, few


def _by_time(time: np.ndarray, ratios: tuple[float, float, float], cuts: Cuts) -> np.ndarray:
    """Split code by global order of time; ties go by user and item, the order of `time`. int8 [n]."""
    n = len(time)
    labels = np.zeros(n, dtype=np.int8)
    if cuts.test is not None:
        labels[time >= cuts.test] = 2
        if cuts.val is not None:
            labels[(time >= cuts.val) & (time < cuts.test)] = 1
            return labels
        earlier = np.flatnonzero(labels == 0)  # val is the last of them, by its share of train and val
        share = ratios[0] / (ratios[0] + ratios[1])
        labels[earlier] = _late(time[earlier], round(len(earlier) * share))
        return labels
    for share in (ratios[0], ratios[0] + ratios[1]):
        labels += _late(time, round(n * share))
    return labels


def _late(time: np.ndarray, cut: int) -> np.ndarray:
    """bool [n]: all but the `cut` earliest; of equal times those that stand first are earlier."""
    if cut >= len(time):
        return np.zeros(len(time), dtype=bool)
    bound = np.partition(time, cut)[cut]
    late = time > bound
    ties = np.flatnonzero(time == bound)
    late[ties[cut - int(np.count_nonzero(time < bound)) :]] = True
    return late
