"""How the rows of a step come to a worker and their gradients go back, whoever holds the tables.

Every worker owns the rows and moments of the users whose interactions it holds. Nobody else reads them, so they never
travel. Items' tables are replicated or sharded. Replicated, workers hold the same tables and add up one block of
gradients, that of the rows which the global batch touches. Sharded, each worker owns contiguous rows and their moments:
a step asks the owners for the rows that it reads and sends them gradients back, and each owner moves its rows. Either
way the bytes of a step do not depend on the tables, and the numbers are the same.

Asking takes two exchanges: of how many rows (`ask`), and of which (`routed`), whose sizes the host must know. Whoever
does the first one step before the second makes no host wait for its device.

Rows are owned in contiguous blocks rather than by id modulo W: ids in ascending order are in the order of their owners
then, an owner makes its first rows without the others', a checkpoint of any number of shards is read by range, and
each worker ranks the users that it owns. The price is that popular ids which stand together have one owner.

Shapes: M members whose tables are read at the same ids, n rows of a table, d width, L ids of a worker's share of a step
and R slots of distinct ones; G slots of the global batch, or of the rows that workers ask of their owner, A in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.distributed.engine import Engine
from m3dist.distributed.rows import Moved, RowTables, Slots, adam_rows, distinct


@dataclass(frozen=True)
class Wanted:
    """What a step reads of a table: ids of this worker's share [L], and what finds those of the global batch [B].

    ids_B: None where every worker reads rows alone that it holds and no other worker reads; called where others read
    them and the table is replicated.
    """

    table: RowTables
    ids_L: Tensor
    ids_B: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Asking:
    """Rows of a step that this worker is about to ask of their owners.

    at_R, int32: where each of its ids_R stands at its owner; the spare row, whose slots are the last, is not asked for.
    read: reads how many each worker owns of them, and how many of this worker's rows each one asks for, of every
    table that travels; the host waits until its device has them. table: which of these.
    """

    at_R: Tensor
    read: Callable[[], list[tuple[list[int], list[int]]]]
    table: int

    @property
    def counts(self) -> tuple[list[int], list[int]]:
        return self.read()[self.table]


@dataclass(frozen=True)
class Route:
    """Which worker gives which rows of a step to whom.

    send: how many of this worker's ids_R each worker owns. receive: how many rows each worker asks of this one, which
    stand at `asked_A` in its block, in rank order; these are the distinct rows_G, and the spare one, at `at_A` among
    them.
    """

    send: list[int]
    receive: list[int]
    asked_A: Tensor
    rows_G: Tensor
    at_A: Tensor


@dataclass(frozen=True)
class Touched:
    """The rows of a table that a step reads: this worker's slots, which stand at `at_R` among those of all, ids_G.

    Rows that this worker alone reads have their places in its table instead, own_R; those of sharded tables are asked
    for, and then have a route.
    """

    table: RowTables
    slots: Slots
    ids_G: Tensor | None = None
    at_R: Tensor | None = None
    asking: Asking | None = None
    route: Route | None = None
    own_R: Tensor | None = None


def touch(engine: Engine, wanted: Sequence[Wanted]) -> list[Touched]:
    """The distinct rows that this worker reads of every table, and what their gradients need to find back."""
    return routed(engine, ask(engine, wanted))


@torch.no_grad()
def ask(engine: Engine, wanted: Sequence[Wanted]) -> list[Touched]:
    """The distinct rows that this worker reads of every table; of those that travel, owners know how many."""
    found = [(x, distinct(x.ids_L, x.table.n)) for x in wanted]
    travel = [(x.table, slots.ids_R) for x, slots in found if _travels(engine, x)]
    asking = iter(_asking(engine, travel) if travel else [])
    return [
        Touched(x.table, slots, asking=next(asking)) if _travels(engine, x) else _here(engine, x, slots)
        for x, slots in found
    ]


@torch.no_grad()
def routed(engine: Engine, touched: Sequence[Touched]) -> list[Touched]:
    """The same rows; of those that travel, owners know which."""
    asking = [(x.table, x.asking.at_R, *x.asking.counts) for x in touched if x.asking]
    parts = [(at_R[: sum(send)].unsqueeze(1), send, receive) for _, at_R, send, receive in asking]
    came = _swap(engine, parts) if parts else []
    routes = iter([_route(table, x, sent, got) for (table, _, sent, got), x in zip(asking, came, strict=True)])
    return [replace(x, asking=None, route=next(routes)) if x.asking else x for x in touched]


def _route(table: RowTables, asked_A1: Tensor, send: list[int], receive: list[int]) -> Route:
    asked_A = asked_A1.squeeze(1).long()
    found = distinct(asked_A, table.weight.shape[1])
    return Route(send, receive, asked_A, found.ids_R, found.slot_L)


def _travels(engine: Engine, wanted: Wanted) -> bool:
    """Whether rows come from other workers."""
    return engine.world > 1 and wanted.table.sharded and wanted.ids_B is not None


def _here(engine: Engine, wanted: Wanted, mine: Slots) -> Touched:
    """Of rows that this worker holds."""
    table = wanted.table
    if engine.world == 1 or wanted.ids_B is None:
        own_R = (mine.ids_R - table.low).clamp_(max=table.weight.shape[1]) if table.sharded else mine.ids_R
        return Touched(table, mine, own_R=own_R)
    ids_G = distinct(wanted.ids_B(), table.n).ids_R
    # a share may have places without an interaction where the batch has none: their spare row, after all others
    at_R = torch.searchsorted(ids_G, mine.ids_R).clamp_(max=len(ids_G) - 1)
    return Touched(table, mine, ids_G, at_R)


@torch.no_grad()
def pull(engine: Engine, touched: Sequence[Touched]) -> list[Tensor]:
    """The rows [M, R, d] that this worker reads of every table."""
    routed = [(x, x.route) for x in touched if x.route is not None]
    parts = [(_flat(x.table.rows(route.asked_A)), route.receive, route.send) for x, route in routed]
    came = iter(_swap(engine, parts) if parts else [])
    return [
        _members(next(came), x.table, len(x.slots.ids_R))
        if x.route
        else x.table.rows(x.slots.ids_R if x.own_R is None else x.own_R)
        for x in touched
    ]


@torch.no_grad()
def push(
    engine: Engine, touched: Sequence[Touched], rows: Sequence[Tensor], grads: Sequence[Tensor]
) -> Callable[[Tensor], None]:
    """Send the gradients [M, R, d] of the rows that `pull` gave to where they are wanted.

    What it returns waits for them and takes an Adam step of every table, at the rate given; it overwrites the rows.
    """
    each = list(zip(touched, rows, grads, strict=True))
    moved = [Moved(x.table, x.own_R, weight, grad) for x, weight, grad in each if x.own_R is not None]
    added, wait = _added_up(engine, [(x, grad) for x, _, grad in each if x.ids_G is not None])
    moved += added
    moved += _to_owners(engine, [(x, x.route, grad) for x, _, grad in each if x.route is not None])

    def move(lr: Tensor) -> None:
        wait()
        adam_rows(moved, lr)

    return move


def _added_up(engine: Engine, touched: Sequence[tuple[Touched, Tensor]]) -> tuple[list[Moved], Callable[[], object]]:
    """Every table's gradient of the global batch's rows [M, G, d], added up in one collective; what waits for it."""
    if not touched:
        return [], lambda: None
    shapes = [(len(grad), len(x.ids_G), grad.shape[2]) for x, grad in touched if x.ids_G is not None]
    sizes = [M * G * d for M, G, d in shapes]
    flat = torch.zeros(sum(sizes), device=engine.device)
    moved = []
    for part, shape, (x, grad_MRd) in zip(flat.split(sizes), shapes, touched, strict=True):
        assert x.ids_G is not None
        assert x.at_R is not None
        grad_MGd = part.view(shape)
        grad_MGd.index_add_(1, x.at_R, grad_MRd)  # of distinct rows, and of the spare one 0
        moved.append(Moved(x.table, x.ids_G, x.table.rows(x.ids_G), grad_MGd))
    engine.sent += flat.numel() * flat.element_size()
    return moved, engine.adding_up(flat)


def _to_owners(engine: Engine, touched: Sequence[tuple[Touched, Route, Tensor]]) -> list[Moved]:
    if not touched:
        return []
    parts = [(_flat(grad_MRd[:, : sum(route.send)]), route.send, route.receive) for _, route, grad_MRd in touched]
    moved = []
    for (x, route, _), grad_Ad in zip(touched, _swap(engine, parts), strict=True):
        G = len(route.rows_G)
        grad_Gd = grad_Ad.new_zeros(G, grad_Ad.shape[1])
        for at, grad in zip(route.at_A.split(route.receive), grad_Ad.split(route.receive), strict=True):
            grad_Gd.index_add_(0, at, grad)  # in rank order, so that every run adds alike
        moved.append(Moved(x.table, route.rows_G, x.table.rows(route.rows_G), _members(grad_Gd, x.table, G)))
    return moved


def _flat(x_MRd: Tensor) -> Tensor:
    """[R, M d]: a row of all members travels as one."""
    return x_MRd.transpose(0, 1).flatten(1)


def _members(x_nk: Tensor, table: RowTables, R: int) -> Tensor:
    """[M, R, d] of n rows of all members, with the spare one behind them where R is more."""
    rows_Mnd = x_nk.unflatten(1, (len(table.weight), -1)).transpose(0, 1)
    return F.pad(rows_Mnd, (0, 0, 0, R - len(x_nk))) if len(x_nk) < R else rows_Mnd.contiguous()


def _asking(engine: Engine, wanted: Sequence[tuple[RowTables, Tensor]]) -> list[Asking]:
    """Tell the owners how many rows this worker reads, ids_R of some tables, all in one collective."""
    world = engine.world
    at, sends = [], []
    for table, ids_R in wanted:
        low_W = table.owners_W1[:-1]
        owner_R = torch.searchsorted(low_W, ids_R, right=True) - 1
        at.append((ids_R - low_W.index_select(0, owner_R)).int())
        sends.append(torch.searchsorted(ids_R, table.owners_W1).diff())
    send_TW, each = torch.stack(sends), [len(wanted)] * world
    receive_WT = engine.exchange(send_TW.T.flatten(), each, each).view(world, -1)
    read = engine.later(torch.stack([send_TW, receive_WT.T], dim=1))
    return [Asking(at_R, read, t) for t, at_R in enumerate(at)]


def _swap(engine: Engine, parts: Sequence[tuple[Tensor, list[int], list[int]]]) -> list[Tensor]:
    """All-to-all of tensors [., d_t] of one dtype in one collective; each with how many rows go to every worker and
    come from each, in rank order."""
    world = engine.world
    pieces = [x.split(send) for x, send, _ in parts]
    widths = [x.shape[1] for x, _, _ in parts]
    flat = torch.cat([piece[w].reshape(-1) for w in range(world) for piece in pieces])
    send = [sum(piece[w].numel() for piece in pieces) for w in range(world)]
    sizes = [[receive[w] * d for (_, _, receive), d in zip(parts, widths, strict=True)] for w in range(world)]
    engine.sent += (flat.numel() - send[engine.rank]) * flat.element_size()
    came = engine.exchange(flat, send, [sum(size) for size in sizes]).split([n for size in sizes for n in size])
    return [torch.cat([x.view(-1, d) for x in came[t :: len(parts)]]) for t, d in enumerate(widths)]
