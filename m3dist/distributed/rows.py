"""Rows of embedding tables that a step reads and moves, in buffers whose size does not depend on the data.

A step names L ids, some of them several times. `distinct` gives every id a slot among R rows, whose gradients
`Slots.sum` adds up and which `adam_rows` moves. On a GPU R is fixed and slots that no id needs hold a spare row, one
past the last of every table, which never changes: no shape waits for the device. On a CPU, where reading a number costs
nothing, R is the number of distinct ids.

Shapes: M members, whose tables are read at the same ids and are stored together; n rows of a table, without the spare
one; d width; L ids of a step, R slots, P parts of slots.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.distributed import adam
from m3dist.distributed.engine import Engine
from m3dist.seeding import torch_rng

_LONG = 1 << 14  # ids of a step from which a GPU sums them by parts: it sums the ids of a slot one after another
_PART = 128  # ids of a part at most
_BLOCK = 1 << 16  # rows that are drawn from a seed of their own


@dataclass(frozen=True)
class Slots:
    """The distinct ids of a step in ascending order, and where each of the L ids went.

    ids_R, int64: the spare row's id n in slots that no id needs. slot_L, int64: id l is ids_R[slot_L[l]]. order_L are
    the positions of the ids by slot, of which those of slot r begin at start_R[r].
    """

    ids_R: Tensor
    slot_L: Tensor
    order_L: Tensor
    start_R: Tensor

    def sum(self, x_MLk: Tensor) -> Tensor:
        """Sums over the ids of each slot [M, R, k], in the order of the ids, so that every run adds alike."""
        if x_MLk.device.type == "cpu" or x_MLk.shape[1] < _LONG:
            return _bags(x_MLk, self.order_L, self.start_R)
        part_P, first_R = self._parts
        place_P = torch.arange(len(part_P), device=part_P.device)
        return _bags(_bags(x_MLk, self.order_L, part_P), place_P, first_R)

    @functools.cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        """Where parts of slots begin in order_L [P], ascending, and the first part of every slot [R].

        No part has more than _PART ids. Some have none, so that P follows from L and R: the last ones, one for every
        slot that no id needs.
        """
        L, R = len(self.order_L), len(self.start_R)
        every = torch.arange(0, L, _PART, device=self.start_R.device)
        part_P = torch.cat([self.start_R, every]).sort().values
        last_R = torch.arange(len(part_P) - R, len(part_P), device=part_P.device)
        return part_P, torch.where(self.start_R < L, torch.searchsorted(part_P, self.start_R), last_R)


def _bags(x_MLk: Tensor, at_L: Tensor, start_R: Tensor) -> Tensor:
    """Sums of rows x[:, at_L] from each start to the next, [M, R, k]."""
    M, L, k = x_MLk.shape
    if M > 1:
        offset_M1 = torch.arange(M, device=at_L.device, dtype=at_L.dtype).mul_(L).unsqueeze(1)
        at_L, start_R = (at_L + offset_M1).view(-1), (start_R + offset_M1).view(-1)
    return F.embedding_bag(at_L, x_MLk.reshape(M * L, k), start_R, mode="sum").view(M, -1, k)


def distinct(ids_L: Tensor, n: int) -> Slots:
    """The slots of int64 ids in 0..n, n being the spare row: R = min(L, n + 1), on a CPU as many as are needed."""
    L, device = len(ids_L), ids_L.device
    sorted_L, order_L = torch.sort(ids_L.int(), stable=True)  # 32 bits sort faster
    first_L = torch.ones(L, dtype=torch.bool, device=device)
    torch.ne(sorted_L[1:], sorted_L[:-1], out=first_L[1:])
    rank_L = first_L.cumsum(0).sub_(1)
    slot_L = torch.empty_like(rank_L).scatter_(0, order_L, rank_L)
    if device.type == "cpu":
        start_R = first_L.nonzero().squeeze(1)
        return Slots(sorted_L.index_select(0, start_R).long(), slot_L, order_L, start_R)
    R = min(L, n + 1)
    ids_R = torch.full((R,), n, dtype=torch.int64, device=device).scatter_(0, rank_L, sorted_L.long())
    return Slots(ids_R, slot_L, order_L, torch.searchsorted(rank_L, torch.arange(R, device=device)))


def spread(ids_R: Tensor, n: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` of the ids below n among ascending ids, spread evenly, and which of these are there, bool [count].

    Where there are fewer, each is there once and the others are the spare row's id n.
    """
    number = (ids_R < n).sum()
    at = torch.arange(count, device=ids_R.device) * number.clamp(min=count) // count
    there = at < number
    return torch.where(there, ids_R.index_select(0, at.clamp(max=len(ids_R) - 1)), n), there


def random_rows(
    shape: tuple[int, int], std: float, generator: torch.Generator, bounds: tuple[int, int] | None = None
) -> Tensor:
    """Normal rows from a CPU generator, the same on every device; of a table that is shared out, those within `bounds`.

    The generator gives the first block of rows and the root of seeds for the others, so that a worker makes its rows
    without all those before them.
    """
    n, d = shape
    low, high = bounds or (0, n)
    weight = torch.empty(high - low, d)
    root = 0
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        if start and (start >= high or start + size <= low):
            continue
        rng = torch_rng(root, "rows", start) if start else generator
        rows = torch.randn(size, d, generator=rng)
        part = rows[max(low - start, 0) : max(high - start, 0)]
        weight[max(start - low, 0) :][: len(part)] = part
        if not start and n > _BLOCK:
            root = int(torch.randint(1 << 62, (), generator=generator))
    return weight.mul_(std)


class RowTables:
    """The tables of M members with their own Adam (Kingma and Ba 2015), whose bias correction counts steps.

    `weight`, `first` and `second` are views [M, r, d] without the spare row; of a sharded table of n rows these are the
    r from `low` on, and elsewhere all n. steps: float32, on the device. dense: rows outside a step follow their moments
    too, as torch.optim.Adam would move them. owners: of a sharded table the first row of each worker, and n behind
    them; rank: of this worker.
    """

    def __init__(self, weight_Mrd: Tensor, dense: bool = False, owners: Sequence[int] | None = None, rank: int = 0):
        M, r, d = weight_Mrd.shape
        self.sharded, self.dense = owners is not None, dense
        self.owners = list(owners or (0, r))
        self.owners_W1 = torch.tensor(self.owners, device=weight_Mrd.device)
        self.low, self.n = self.owners[rank] if self.sharded else 0, self.owners[-1]
        self._weight, self._first, self._second = (weight_Mrd.new_zeros(M, r + 1, d) for _ in range(3))
        self._weight[:, :r] = weight_Mrd
        self.weight, self.first, self.second = (x[:, :r] for x in (self._weight, self._first, self._second))
        self.steps = torch.zeros((), device=weight_Mrd.device)

    def parts(self) -> dict[str, Tensor]:
        """All that a checkpoint keeps of every row [r, d], alive, by what it is and member."""
        kept = {"weight": self.weight, "first": self.first, "second": self.second}
        return {f"{name}/{m}": x for name, x_Mrd in kept.items() for m, x in enumerate(x_Mrd)}

    def whole(self, engine: Engine) -> Tensor:
        """All rows [M, n, d] on every worker."""
        if not self.sharded:
            return self.weight
        M, _, d = self.weight.shape
        counts = [high - low for low, high in itertools.pairwise(self.owners)]
        with torch.no_grad():
            rows_nk = engine.gather(self.weight.transpose(0, 1).reshape(-1, M * d), counts)
        return rows_nk.view(self.n, M, d).transpose(0, 1)

    def rows(self, ids_R: Tensor) -> Tensor:
        """[M, R, d] of places among the rows that this worker holds, 0..r."""
        return self._weight.index_select(1, ids_R)


@dataclass(frozen=True)
class Moved:
    """The rows of a table that a step moves: distinct ids (and the spare one), their weights and gradients [M, R, d].

    The gradient of the spare row is 0. The weights are overwritten.
    """

    table: RowTables
    ids_R: Tensor
    weight_MRd: Tensor
    grad_MRd: Tensor


@torch.no_grad()
def adam_rows(moved: Sequence[Moved], lr: Tensor) -> None:
    """One Adam step of all the rows given, in one launch for all tables; lr is a float32 scalar on their device."""
    weights, grads, firsts, seconds = [], [], [], []
    for x in moved:
        table = x.table
        if table.dense:
            grads.append(torch.zeros_like(table._weight).index_copy_(1, x.ids_R, x.grad_MRd))
            weights.append(table._weight)
            firsts.append(table._first)
            seconds.append(table._second)
        else:
            grads.append(x.grad_MRd)
            weights.append(x.weight_MRd)
            firsts.append(table._first.index_select(1, x.ids_R))
            seconds.append(table._second.index_select(1, x.ids_R))
    adam.move(weights, grads, (firsts, seconds), [x.table.steps for x in moved], lr)
    for x, weight, first, second in zip(moved, weights, firsts, seconds, strict=True):
        if not x.table.dense:
            _put(x.table._weight, x.ids_R, weight)
            _put(x.table._first, x.ids_R, first)
            _put(x.table._second, x.ids_R, second)


def _put(table_Mnd: Tensor, ids_R: Tensor, rows_MRd: Tensor) -> None:
    """Write distinct rows; on a CPU by numpy, which copies them whole where index_copy_ walks their elements."""
    if table_Mnd.device.type == "cpu":
        at_R = ids_R.numpy()
        for table_nd, rows_Rd in zip(table_Mnd.numpy(), rows_MRd.numpy(), strict=True):
            table_nd[at_R] = rows_Rd
    else:
        table_Mnd.index_copy_(1, ids_R, rows_MRd)
