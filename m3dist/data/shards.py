"""Shards: contiguous ranges of users with about as many training interactions each.

They follow from the data alone, never from how many workers there are; a worker owns a run of them and holds the
interactions of their users, and no others.

Shapes: U users, n training interactions, S shards, s of them a worker's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3dist.data.parts import share

SHARDS = 256  # of large data; many beside the workers there are, who then hold about alike
_LEAST = 64  # training interactions of a shard, where there are so few that shards would have none to shuffle


@dataclass(frozen=True)
class Part:
    """A worker's run of shards.

    users: the first, and the first behind them. shards: the numbers that its shards' first interactions have among all
    n, sorted by user, and that of the first interaction behind them, [s + 1]. total: n.
    """

    users: tuple[int, int]
    shards: tuple[int, ...]
    total: int

    @staticmethod
    def even(n: int, rank: int, world: int) -> Part:
        """Of n things, one of each user, in shards of equal size."""
        return part(starts(np.ones(n, dtype=np.int64)), rank, world)

    @staticmethod
    def of(numbers: Sequence[int]) -> Part:
        """From `numbers`."""
        low, high, total, *shards = numbers
        return Part((low, high), tuple(shards), total)

    @property
    def numbers(self) -> list[int]:
        """All of it, for what carries tensors alone."""
        return [*self.users, self.total, *self.shards]

    @property
    def pairs(self) -> slice:
        """Its interactions among all."""
        return slice(self.shards[0], self.shards[-1])


def starts(count_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first user of every shard and the number of its first interaction, with U and n behind, int64 [S + 1].

    count_U: training interactions of every user.
    """
    before = np.concatenate([[0], np.cumsum(count_U, dtype=np.int64)])
    count = min(SHARDS, max(1, before[-1] // _LEAST))
    wanted = np.arange(count) * before[-1] // count
    user = np.append(np.searchsorted(before[:-1], wanted), len(count_U))
    user[0] = 0
    return user, before[user]


def part(bounds: tuple[np.ndarray, np.ndarray], rank: int, world: int) -> Part:
    """What worker `rank` of `world` owns. bounds: from `starts`."""
    user, pair = bounds
    low, high = share(len(user) - 1, rank, world)
    return Part((int(user[low]), int(user[high])), tuple(pair[low : high + 1].tolist()), int(pair[-1]))
