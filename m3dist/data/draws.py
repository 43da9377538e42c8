"""Which interactions, negatives and neighbours a step sees: functions of (seed, purpose, epoch, step), on the device.

A global batch is B interactions in G groups, of which each has negatives of its own. It takes from every shard of
users about alike, and a worker that holds some shards finds its part of it without the others' interactions. Everything
that is drawn comes from one hash of integers, with the same bits on every device; a step reads its number from a tensor
on the device, so that it has the same shapes and the same launches each time and can be captured in a CUDA graph.
Nothing here keeps the state of a generator: the numbers depend neither on the number of workers nor on where a run was
resumed.

Shapes: n interactions, n_w of this worker, U users, I items, B positions of a global batch, G its groups, P groups of
which this worker has positions, b its positions of a group at most, N negatives of a group, m those of one positive, K
neighbours of an item, s drawn columns of them, X further hashes.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m3dist.data.parts import share
from m3dist.data.shards import Part
from m3dist.seeding import derive

_GOLDEN = -7046029254386353131  # 0x9e3779b97f4a7c15 as int64: splitmix64 adds it for every number
CHUNK = 1 << 18  # interactions that are sorted at once, at least a shard
_EVEN = 1.05  # how much larger than the mean the largest group may be that is a run of shards
_SHARD_BITS = 9  # of a key that orders some shards: more than there are shards
Gather = Callable[[Tensor], Tensor]  # rows of this worker -> of all workers


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele et al., OOPSLA 2014) of int64 numbers, a bijection of 64 bits; int64."""
    z = x ^ ((x >> 30) & ((1 << 34) - 1))  # the mask makes the shift a logical one
    z *= -4658895280553007687  # 0xbf58476d1ce4e5b9
    z ^= (z >> 27) & ((1 << 37) - 1)
    z *= -7723592293110705685  # 0x94d049bb133111eb
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z


def uniform(hash_X: Tensor) -> Tensor:
    """Numbers between 0 and 1, neither of which is one, float32, from int64 hashes; the same on every device."""
    return (((hash_X >> 40) & ((1 << 24) - 1)) + 0.5) * 2.0**-24


def normal(hash_X: Tensor) -> Tensor:
    """Standard normal numbers, float32, from int64 hashes; equal on all devices up to rounding."""
    return torch.erfinv(2 * uniform(hash_X) - 1) * math.sqrt(2)


def order(shards: Sequence[int], key: int, device: torch.device) -> Iterator[Tensor]:
    """Pseudo-random permutations of the numbers of consecutive shards, each by itself: the numbers of each one in the
    order of their hashes, less the first of all, int64; of some shards at once where these are small.

    shards: the first number of each, and the first behind them.
    """
    first = 0
    while first < len(shards) - 1:
        last = max(first + 1, bisect.bisect_right(shards, shards[first] + CHUNK) - 1)
        number = torch.arange(shards[first], shards[last], device=device)
        bounds = torch.tensor(shards[first + 1 : last], dtype=torch.int64, device=device)
        shard = torch.searchsorted(bounds, number, right=True)
        hash_ = (mix(number * _GOLDEN + key) >> _SHARD_BITS) & ((1 << (63 - _SHARD_BITS)) - 1)
        by_hash = torch.argsort(hash_ + (shard << (63 - _SHARD_BITS)), stable=True)
        yield by_hash + (shards[first] - shards[0])
        first = last


def narrow(count: int) -> torch.dtype:
    """What holds a number below `count`, at most 2^15: int8, or int16 where it must be."""
    return torch.int8 if count <= 1 << 7 else torch.int16


def scattered(numbers: slice, count: int, key: int) -> Tensor:
    """A number below `count` for each of some numbers, by its hash alone, [n_w]."""
    out = torch.empty(numbers.stop - numbers.start, dtype=narrow(count))
    for start in range(numbers.start, numbers.stop, CHUNK):
        hash_ = mix(torch.arange(start, min(start + CHUNK, numbers.stop)) * _GOLDEN + key)
        out[start - numbers.start :][: len(hash_)] = (((hash_ >> 32) & ((1 << 31) - 1)) * count) >> 31
    return out


@dataclass(frozen=True)
class Layout:
    """Where this worker's interactions stand in the global batches of an epoch, `steps` of at most `size` positions.

    The n interactions of an epoch stand in n places, those of each shard together and in their own order. Step t takes
    the places t, t + steps, t + 2 steps, ..., which are positions 0, 1, 2, ... of its batch: every shard gives about
    alike to every step, and batches differ by one interaction at most. A group has what stands in a contiguous range of
    places, so that the position at its end may be the next group's in some steps. position_Pb: on the CPU, int64,
    `size` where this worker has fewer than b in a group; bounds_P2: its places of each group, the first and the first
    behind them; first: the first of its P groups, which are consecutive.
    """

    size: int
    steps: int
    groups: int
    position_Pb: Tensor
    bounds_P2: Tensor
    first: int

    @staticmethod
    def of(
        n: int, batch_size: int, groups: int = 1, places: slice | None = None, shards: Sequence[int] | None = None
    ) -> Layout:
        """Of n interactions in batches of at most `batch_size`. places: this worker's; all by default. shards: the
        first number of each shard of all workers, and n.

        A worker without interactions has a position that is never there.
        """
        steps = -(-n // batch_size)
        size, mine_n = -(-n // steps), places or slice(0, n)
        bounds = [
            (max(mine_n.start, a), max(mine_n.start, a, min(mine_n.stop, b)))
            for a, b in itertools.pairwise(_cuts(n, steps, groups, shards))
        ]
        mine = [group for group, (a, b) in enumerate(bounds) if a < b] or [0]
        ranges = [
            range(a // steps, -(-b // steps)) if a < b else range(0) for a, b in (bounds[group] for group in mine)
        ]
        position_Pb = torch.full((len(mine), max(1, *map(len, ranges))), size)
        for position_b, found in zip(position_Pb, ranges, strict=True):
            position_b[: len(found)] = torch.arange(found.start, found.stop)
        return Layout(size, steps, groups, position_Pb, torch.tensor([bounds[group] for group in mine]), mine[0])

    @property
    def whole(self) -> bool:
        """Whether this worker has the whole batch."""
        return len(self.position_Pb) == self.groups and int((self.position_Pb < self.size).sum()) == self.size


def _cuts(n: int, steps: int, groups: int, shards: Sequence[int] | None) -> list[int]:
    """The first place of each group, and n behind.

    Groups are runs of shards where these make them about alike, so that workers, who own runs of shards, share no group
    and read the negatives of no more than they train; else they are ranges of as many positions.
    """
    if shards is not None:
        cuts = [shards[share(len(shards) - 1, group, groups)[0]] for group in range(groups)] + [n]
        if max(b - a for a, b in itertools.pairwise(cuts)) * groups <= _EVEN * n:
            return cuts
    size = -(-n // steps)
    return [share(size, group, groups)[0] * steps for group in range(groups)] + [n]


@dataclass(frozen=True)
class Plan:
    """What a step draws beside interactions.

    negatives: of each group, one from each of so many equal stretches of the item ids; with `per_positive`, of each
    positive, drawn independently. columns: so many distinct ones of 0..neighbours-1, for the whole batch. hashes:
    further int64 numbers.
    """

    negatives: int
    per_positive: bool = False
    neighbours: int = 0
    columns: int = 0
    hashes: int = 0


@dataclass(frozen=True)
class Pairs:
    """The training interactions that this worker holds and the sizes of the catalogue: user, item int32 or int64 [n_w],
    U and I.

    pool: ids of the items that negatives are drawn from; all items where it is None. part: which of all interactions
    these are; all where it is None.
    """

    user: Tensor
    item: Tensor
    n_users: int
    n_items: int
    pool: Tensor | None = None
    part: Part | None = None

    @property
    def shards(self) -> tuple[int, ...]:
        """Numbers of the shards' first interactions among all, and of the first behind them."""
        return self.part.shards if self.part else (0, len(self.user))

    @property
    def total(self) -> int:
        """Interactions of all workers."""
        return self.part.total if self.part else len(self.user)


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global step. Where `valid` is False there is no interaction: its ids are U and I.

    negative: [P, N], or [P, b, m] where every positive has its own. size: interactions of the global batch, float32.
    negative_B: of the whole global batch. gather: rows of all workers' batches from this one's, where there are others.
    filled: of each group, how many positions can have an interaction, which are its first; None where all can.
    """

    index_Pb: Tensor  # int32 or int64 positions in this worker's interactions; some interaction where there is none
    valid_Pb: Tensor  # bool
    user_Pb: Tensor
    item_Pb: Tensor
    negative: Tensor
    columns_s: Tensor
    hashes_X: Tensor
    size: Tensor
    negative_B: Tensor
    gather: Gather | None = None
    filled: tuple[int, ...] | None = None

    @functools.cached_property
    def item_B(self) -> Tensor:
        """Items of the whole global batch, in any order; I where there is none. Every worker must ask alike."""
        item_b1 = self.item_Pb.view(-1, 1)
        return (item_b1 if self.gather is None else self.gather(item_b1.int()).long()).squeeze(1)


class Draws:
    """Global steps over the training interactions.

    `seek` says on the host where a run stands; then `draw` gives the step's batch and `advance` goes to the next one,
    both on the device alone. key: of the purpose, from `seeding.derive`. gather: see `Batch`.
    """

    def __init__(self, pairs: Pairs, plan: Plan, layout: Layout, key: int, gather: Gather | None = None):
        device, n = pairs.user.device, len(pairs.user)
        self.pairs, self.plan, self.layout, self.key, self.gather = pairs, plan, layout, key, gather
        self.steps = layout.steps  # of an epoch
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # within the epoch
        self._before = torch.zeros((), dtype=torch.int64, device=device)  # steps of earlier epochs
        self._epoch, self.here = -1, 0  # where a run stands, on the host
        index = torch.int32 if n < 1 << 31 else torch.int64
        self._order = torch.zeros(max(n, 1), dtype=index, device=device)
        # less the first, the places of step 0
        self._place_Pb = (layout.position_Pb * layout.steps - pairs.shards[0]).to(device)
        self._low_P1, self._high_P1 = (layout.bounds_P2 - pairs.shards[0]).to(device).split(1, dim=1)
        each = plan.negatives * (layout.size if plan.per_positive else layout.groups)
        self._parts = [each, plan.neighbours, plan.hashes]
        lane = torch.arange(sum(self._parts))
        self._lane = (lane * _GOLDEN + key).to(device)
        self._stride = _wrapped(sum(self._parts) * _GOLDEN)
        self._pool = len(pairs.pool) if pairs.pool is not None else pairs.n_items
        self._bits = min(31, 62 - self._pool.bit_length() - plan.negatives.bit_length())
        stretch = torch.arange(plan.negatives) << self._bits
        self._stretch = stretch.to(device)
        self._nobody = torch.full((), pairs.n_users, dtype=pairs.user.dtype, device=device)
        self._nothing = torch.full((), pairs.n_items, dtype=pairs.item.dtype, device=device)
        self._user = pairs.user if n else self._nobody.view(1)
        self._item = pairs.item if n else self._nothing.view(1)
        self._filled = None if plan.per_positive else tuple((layout.position_Pb < layout.size).sum(1).tolist())
        self._own = None  # positions whose own negatives are this worker's, where these are not all
        if plan.per_positive and not layout.whole:
            self._own = layout.position_Pb.clamp(max=layout.size - 1).to(device)

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch; the order of a new epoch is made here."""
        if epoch != self._epoch:
            start = 0
            for some in order(self.pairs.shards, derive(self.key, "order", epoch), self._order.device):
                self._order[start : start + len(some)] = some
                start += len(some)
            self._epoch = epoch
        self._before.fill_(epoch * self.steps)
        self.step.fill_(step)
        self.here = step

    def advance(self) -> None:
        self.step.add_(1)
        self.here += 1

    @property
    def number(self) -> Tensor:
        """Steps before this one, those of earlier epochs included, on the device."""
        return self.step + self._before

    @property
    def number_here(self) -> int:
        """The same on the host, which does not follow captured steps."""
        return self._epoch * self.steps + self.here

    @property
    def present(self) -> tuple[slice, int]:
        """Which positions of a layout with one group are there on this worker, and how many in the global batch; on the
        host, and only where steps are taken one by one."""
        steps, (position_b,) = self.steps, self.layout.position_Pb
        first, behind = (-(-(place - self.here) // steps) for place in (self.pairs.shards[0], self.pairs.shards[-1]))
        low = int(position_b[0])
        return slice(max(first - low, 0), max(behind - low, 0)), -(-(self.pairs.total - self.here) // steps)

    def draw(self, further: int = 0) -> Batch:
        """The batch of the step that `step` says, or of one so many steps further in the epoch."""
        plan, layout = self.plan, self.layout
        step = self.step + further if further else self.step
        number = (step + self._before) * self._stride
        drawn, columns, hashes_X = mix(self._lane + number).split(self._parts)
        index_Pb, valid_Pb, user_Pb, item_Pb = self._interactions(step)
        all_negatives = self._negatives(drawn)
        if not plan.per_positive:
            negative = all_negatives[layout.first : layout.first + len(self._place_Pb)]
        elif self._own is None:
            negative = all_negatives.unsqueeze(0)
        else:
            negative = all_negatives.index_select(0, self._own.view(-1)).view(*self._own.shape, plan.negatives)
        if plan.columns:
            columns = torch.argsort(columns)[: plan.columns]
        size = torch.div(self.pairs.total - 1 - step, self.steps, rounding_mode="floor") + 1
        return Batch(
            index_Pb, valid_Pb, user_Pb, item_Pb, negative, columns, hashes_X, size.float(), all_negatives, self.gather,
            self._filled,
        )  # fmt: skip

    def _interactions(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(index, whether there is one, user, item) of a step's interactions."""
        n = len(self.pairs.user)
        place_Pb = self._place_Pb + step
        valid_Pb = (place_Pb >= self._low_P1) & (place_Pb < self._high_P1)
        index = self._order.index_select(0, place_Pb.clamp(0, max(n - 1, 0)).view(-1))
        shape = place_Pb.shape
        user_Pb = torch.where(valid_Pb, self._user.index_select(0, index).view(shape), self._nobody).long()
        item_Pb = torch.where(valid_Pb, self._item.index_select(0, index).view(shape), self._nothing).long()
        return index.view(shape), valid_Pb, user_Pb, item_Pb

    def _negatives(self, hash_x: Tensor) -> Tensor:
        """Item ids [G, N], the j-th of a group from the j-th of N equal stretches of the pool; or [B, m], from all."""
        plan, bits = self.plan, self._bits
        part = (hash_x >> (64 - bits)) & ((1 << bits) - 1)
        part = part.view(-1, plan.negatives)
        if plan.per_positive:
            at = (part * self._pool) >> bits
        else:
            at = (part + self._stretch) * self._pool // (plan.negatives << bits)
        if self.pairs.pool is None:
            return at
        return self.pairs.pool.index_select(0, at.view(-1)).view(at.shape).long()


def _wrapped(x: int) -> int:
    """The int64 with the low 64 bits of x."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)
