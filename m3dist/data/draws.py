"""Which interactions, negatives and neighbours a step sees: functions of (seed, purpose, epoch, step), on the device.

A global batch is B interactions in G groups, of which each has negatives of its own. Everything that is drawn comes
from one hash of integers, with the same bits on every device; a step reads its number from a tensor on the device, so
that it has the same shapes and the same launches each time and can be captured in a CUDA graph. Nothing here keeps the
state of a generator: the numbers depend neither on the number of workers nor on where a run was resumed.

Shapes: n interactions, U users, I items, B positions of a global batch, G its groups, P groups of which this worker has
positions, b its positions of a group at most, N negatives of a group, m those of one positive, K neighbours of an item,
s drawn columns of them, X further hashes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from m3dist.data.parts import share
from m3dist.seeding import derive

_GOLDEN = -7046029254386353131  # 0x9e3779b97f4a7c15 as int64: splitmix64 adds it for every number
_CHUNK = 1 << 20  # interactions whose keys are hashed at once


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


def order(n: int, key: int, device: torch.device) -> Tensor:
    """A pseudo-random permutation of 0..n-1, int64 [n]: the order of the hashes of all numbers, which are distinct."""
    key_n = torch.empty(n, dtype=torch.int64, device=device)
    for start in range(0, n, _CHUNK):
        part = torch.arange(start, min(start + _CHUNK, n), device=device)
        key_n[start : start + _CHUNK] = mix(part * _GOLDEN + key)
    return torch.argsort(key_n)


@dataclass(frozen=True)
class Layout:
    """Where this worker's interactions stand in a global batch of `size` positions in `groups` groups.

    Position p is in group p mod G, so that groups differ by one interaction at most in an epoch's last batch too.
    Workers take contiguous parts of the positions in order of their groups. position_Pb: on the CPU, int64, `size`
    where this worker has fewer than b in a group; first: the first of its P groups, which are consecutive.
    """

    size: int
    groups: int
    position_Pb: Tensor
    first: int

    @staticmethod
    def of(size: int, groups: int = 1, rank: int = 0, world: int = 1) -> Layout:
        """The part of worker `rank` of `world`. A worker without interactions has one that is never there."""
        low, high = share(size, rank, world)
        count = [len(range(group, size, groups)) for group in range(groups)]
        start = [sum(count[:group]) for group in range(groups)]
        bounds = [(max(low - a, 0), min(high - a, n)) for a, n in zip(start, count, strict=True)]
        mine = [group for group, (a, b) in enumerate(bounds) if a < b] or [0]
        width = max(1, *(b - a for a, b in bounds))
        position_Pb = torch.full((len(mine), width), size)
        for row, group in enumerate(mine):
            a, b = bounds[group]
            if a < b:
                position_Pb[row, : b - a] = torch.arange(a, b) * groups + group
        return Layout(size, groups, position_Pb, mine[0])

    @property
    def whole(self) -> bool:
        """Whether this worker has the whole batch."""
        return len(self.position_Pb) == self.groups and int((self.position_Pb < self.size).sum()) == self.size


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
    """The training interactions and the sizes of the catalogue: user, item int32 or int64 [n], U and I.

    pool: ids of the items that negatives are drawn from; all items where it is None.
    """

    user: Tensor
    item: Tensor
    n_users: int
    n_items: int
    pool: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global step. Where `valid` is False there is no interaction: its ids are U and I.

    negative: [P, N], or [P, b, m] where every positive has its own. size: interactions of the global batch, float32.
    user_B, item_B, negative_B: of the whole global batch, in any order; U and I where there is none.
    """

    index_Pb: Tensor  # int32 or int64 positions in the training split; some interaction where there is none
    valid_Pb: Tensor  # bool
    user_Pb: Tensor
    item_Pb: Tensor
    negative: Tensor
    columns_s: Tensor
    hashes_X: Tensor
    size: Tensor
    user_B: Tensor
    item_B: Tensor
    negative_B: Tensor


class Draws:
    """Global steps over the training interactions.

    `seek` says on the host where a run stands; then `draw` gives the step's batch and `advance` goes to the next one,
    both on the device alone. key: of the purpose, from `seeding.derive`.
    """

    def __init__(self, pairs: Pairs, plan: Plan, layout: Layout, key: int):
        device, n = pairs.user.device, len(pairs.user)
        self.pairs, self.plan, self.layout, self.key = pairs, plan, layout, key
        self.steps = -(-n // layout.size)  # of an epoch; the last one has what remains
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # within the epoch
        self._before = torch.zeros((), dtype=torch.int64, device=device)  # steps of earlier epochs
        self._epoch, self.here = -1, 0  # where a run stands, on the host
        index = torch.int32 if n < 1 << 31 else torch.int64
        self._order = torch.full((self.steps * layout.size + 1,), n, dtype=index, device=device)  # n: no interaction
        nowhere = self.steps * layout.size
        position_Pb = layout.position_Pb.masked_fill(layout.position_Pb == layout.size, nowhere)
        self._position_Pb = position_Pb.to(device)
        self._everyone_B = None if layout.whole else torch.arange(layout.size, device=device)
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

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch; the order of a new epoch is made here."""
        n = len(self.pairs.user)
        if epoch != self._epoch:
            self._order[:n] = order(n, derive(self.key, "order", epoch), self._order.device)
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
    def present(self) -> tuple[int, int]:
        """How many interactions this worker's part of the step has, and the global batch, on the host.

        This worker's come first. Of a layout with one group, and only where steps are taken one by one.
        """
        size = min(self.layout.size, len(self.pairs.user) - self.here * self.layout.size)
        return int((self.layout.position_Pb < size).sum()), size

    def draw(self) -> Batch:
        """The batch of the step that `step` says."""
        plan, layout = self.plan, self.layout
        number = (self.step + self._before) * self._stride
        drawn, columns, hashes_X = mix(self._lane + number).split(self._parts)
        start = self.step * layout.size
        index_Pb, valid_Pb, user_Pb, item_Pb = self._interactions(self._position_Pb + start)
        all_negatives = self._negatives(drawn)
        if not plan.per_positive:
            negative = all_negatives[layout.first : layout.first + len(self._position_Pb)]
        elif self._everyone_B is None and layout.groups == 1:
            negative = all_negatives.unsqueeze(0)
        else:
            at_Pb = self._position_Pb.clamp(max=layout.size - 1)
            negative = all_negatives.index_select(0, at_Pb.view(-1)).view(*at_Pb.shape, plan.negatives)
        user_B, item_B = user_Pb.view(-1), item_Pb.view(-1)
        if self._everyone_B is not None:
            _, _, user_B, item_B = self._interactions(self._everyone_B + start)
        if plan.columns:
            columns = torch.argsort(columns)[: plan.columns]
        return Batch(
            index_Pb, valid_Pb, user_Pb, item_Pb, negative, columns, hashes_X,
            (len(self.pairs.user) - start).clamp(max=layout.size).float(), user_B, item_B, all_negatives,
        )  # fmt: skip

    def _interactions(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(index, whether there is one, user, item) of the interactions at these places of the epoch's order."""
        pairs, n = self.pairs, len(self.pairs.user)
        index = self._order.index_select(0, at.clamp(max=len(self._order) - 1).view(-1))
        valid = index < n
        index.clamp_(max=n - 1)
        user = torch.where(valid, pairs.user.index_select(0, index), self._nobody).long()
        item = torch.where(valid, pairs.item.index_select(0, index), self._nothing).long()
        return tuple(x.view(at.shape) for x in (index, valid, user, item))  # type: ignore[return-value]

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
