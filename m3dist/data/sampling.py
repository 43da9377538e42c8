"""The global order of interactions and their negatives, as functions of (seed, epoch, step).

Nothing here knows ranks or keeps state: a worker computes the global step and takes its slice, so the numbers
do not depend on the number of workers and a resume at any step is exact. The order of an epoch is a keyed
bijection evaluated where it is needed, so it costs no memory, whatever the number of interactions.

Shapes: n interactions, B global batch, b this worker's share, N negatives, G groups of a batch, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from m3dist.seeding import derive, numpy_rng

_ROUNDS = 4


class Permutation:
    """A pseudo-random bijection of 0..n-1 in O(1) memory: a Feistel network over a rectangle just above n.

    Positions that fall outside 0..n-1 are walked along their cycle until they come back inside (Black and
    Rogaway, CT-RSA 2002); the rectangle exceeds n by at most 2 sqrt(n) + 1 cells, so few ever do.
    """

    def __init__(self, n: int, seed: int):
        self.n = n
        self.rows = max(1, int(np.ceil(np.sqrt(n))))
        self.cols = max(1, -(-n // self.rows))
        self.keys = [np.uint64(derive(seed, "feistel", i)) for i in range(2 * _ROUNDS)]

    def __call__(self, position: np.ndarray) -> np.ndarray:
        """Images of int64 positions in 0..n-1, int64 of the same shape."""
        out = self._once(position.astype(np.uint64))
        while (outside := out >= self.n).any():
            out[outside] = self._once(out[outside])
        return out.astype(np.int64)

    def _once(self, x: np.ndarray) -> np.ndarray:
        rows, cols = np.uint64(self.rows), np.uint64(self.cols)
        left, right = np.divmod(x, cols)
        for i in range(_ROUNDS):
            left = (left + _mix(right, self.keys[2 * i]) % rows) % rows
            right = (right + _mix(left, self.keys[2 * i + 1]) % cols) % cols
        return left * cols + right


def _mix(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """splitmix64's finaliser of x + key, shifted down so that sums with a coordinate cannot overflow."""
    z = x + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(1)


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global step.

    Shared negatives: the batch is G groups of consecutive interactions, each with N of its own. `parts` says how many
    of this worker's interactions are in each group that it has any of, whose negatives stand in `negative` in order.
    """

    index_b: torch.Tensor  # int64 positions of the interactions in the training split
    user_b: torch.Tensor
    item_b: torch.Tensor
    negative: torch.Tensor  # [len(parts) N] shared, or [b, n] per positive
    size: int  # B
    item_B: torch.Tensor  # items of the whole global batch, for losses over it
    user_B: torch.Tensor
    negative_B: torch.Tensor  # negatives of the whole global batch: [G N], or [B, n] per positive
    bounds: tuple[int, int]  # this worker's slice of the global batch
    seed: int  # for whatever else the step draws
    parts: tuple[int, ...]  # add up to b

    @property
    def part(self) -> float:
        """This worker's share of the global batch; shares add up to 1."""
        return len(self.user_b) / self.size


def share(n: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous part of 0..n-1 that belongs to `rank`; sizes differ by at most one."""
    return n * rank // world, n * (rank + 1) // world


@dataclass(frozen=True)
class Draws:
    """How negatives are drawn.

    count: negatives of every positive with `per_positive`, the paper's form; otherwise of each of `groups` equal parts
    of the global batch, one from each of as many equal stretches of item ids.
    """

    count: int
    per_positive: bool = False
    groups: int = 1


class Sampler:
    """Global steps over the training interactions.

    pairs: int32 or int64 users and items [n]. Negatives are uniform over items. key: the run's seed and the purpose,
    of which order and draws are functions.
    """

    def __init__(
        self,
        pairs: tuple[torch.Tensor, torch.Tensor],
        n_items: int,
        batch_size: int,
        draws: Draws,
        key: tuple[int, str],
    ):
        (self.user, self.item), self.n_items = pairs, n_items
        self.batch_size = min(batch_size, len(self.user))
        self.negatives, self.per_positive, self.groups = draws.count, draws.per_positive, draws.groups
        self.seed, self.purpose = key
        self._order: tuple[int, Permutation] | None = None

    @property
    def steps(self) -> int:
        """Steps per epoch; the last one holds what remains."""
        return -(-len(self.user) // self.batch_size)

    def __call__(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Batch:
        n = len(self.user)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, Permutation(n, derive(self.seed, self.purpose, "order", epoch)))
        start = step * self.batch_size
        size = min(self.batch_size, n - start)
        device = self.user.device
        index_B = torch.from_numpy(self._order[1](np.arange(start, start + size))).to(device)
        rng = numpy_rng(self.seed, self.purpose, "negatives", epoch, step)
        low, high = share(size, rank, world)
        if self.per_positive:
            drawn = rng.integers(0, self.n_items, (size, self.negatives))
            parts, mine = [high - low], drawn[low:high]
        else:
            # one from each of N equal stretches of ids: uniform, with less variance than independent draws
            at = np.arange(self.negatives) + rng.random((self.groups, self.negatives))
            drawn = (at * self.n_items / self.negatives).astype(np.int64)
            parts, first = _groups(size, self.groups, low, high)
            mine = drawn[first : first + len(parts)].reshape(-1)
            drawn = drawn.reshape(-1)
        user_B, item_B = self.user[index_B].long(), self.item[index_B].long()
        return Batch(
            index_b=index_B[low:high],
            user_b=user_B[low:high],
            item_b=item_B[low:high],
            negative=torch.from_numpy(mine).to(device),
            size=size,
            item_B=item_B,
            user_B=user_B,
            negative_B=torch.from_numpy(drawn).to(device),
            bounds=(low, high),
            seed=derive(self.seed, self.purpose, "step", epoch, step),
            parts=tuple(parts),
        )


def _groups(size: int, groups: int, low: int, high: int) -> tuple[list[int], int]:
    """Interactions of each group within [low, high), from the first group that has any (or 0) on, and that group."""
    ends = [share(size, group, groups) for group in range(groups)]
    inside = [max(0, min(high, b) - max(low, a)) for a, b in ends]
    some = [group for group, n in enumerate(inside) if n] or [0]
    return inside[some[0] : some[-1] + 1], some[0]


class Distinct:
    """Distinct ids in ascending order and where each went, for ids of 0..n-1.

    Marking a flag per id beats sorting while the range is small beside the batch; beyond that, sort.
    """

    def __init__(self, n: int):
        self.n = n

    def __call__(self, *ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The distinct ids [R] of all arguments, and for each argument the positions of its ids in them."""
        flat = torch.cat([x.reshape(-1) for x in ids])
        if self.n <= 16 * len(flat):
            mark = torch.zeros(self.n, dtype=torch.bool, device=flat.device)
            mark[flat] = True
            distinct_R = mark.nonzero().squeeze(1)
            slot = torch.empty(self.n, dtype=torch.int64, device=flat.device)
            slot[distinct_R] = torch.arange(len(distinct_R), device=flat.device)
            where = slot[flat]
        else:
            distinct_R, where = torch.unique(flat, return_inverse=True)
        parts = torch.split(where, [x.numel() for x in ids])
        return distinct_R, [part.view(x.shape) for part, x in zip(parts, ids, strict=True)]
