"""Embedding tables that are trained by the rows of a step, so that a step does not grow with the table.

Replicated, workers hold the same table and add up one block of gradients, that of the rows which the global batch
touches. Sharded, worker w owns the contiguous rows `share(n, w, W)` and their moments: a step asks the owners for the
rows that it reads and sends them gradients back, and each owner moves its rows. Either way the bytes of a step do not
depend on the table, and the numbers are the same.

Rows are owned in contiguous blocks rather than by id modulo W: ids in ascending order are in the order of their owners
then, an owner makes its first rows without the others', a checkpoint of any number of shards is read by range, and
each worker ranks the users that it owns. The price is that popular ids which stand together have one owner.

Shapes: n rows, d width, R distinct rows of a worker's share of a step, G of the global batch (of those that a worker
owns, where it owns a part), A rows that workers ask of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from m3dist.data.sampling import share
from m3dist.distributed.engine import Engine
from m3dist.seeding import torch_rng

BETAS = (0.9, 0.999)
_BLOCK = 1 << 16  # rows that are drawn from a seed of their own, and that travel together


@dataclass(frozen=True)
class Route:
    """Which worker gives which rows of a step to whom.

    send: how many of this worker's ids_R each worker owns. receive: how many rows each worker asks of this one, which
    stand at `asked_A` in its block, in rank order; these are the distinct rows_G at `at_A` among them.
    """

    send: list[int]
    receive: list[int]
    asked_A: Tensor
    rows_G: Tensor
    at_A: Tensor


@dataclass(frozen=True)
class Touched:
    """The rows of a table that a step reads: this worker's `ids_R`, which stand at `at_R` among those of all, ids_G.

    Ids are ascending and distinct. A worker alone has no ids_G; sharded tables have a route instead.
    """

    ids_R: Tensor
    ids_G: Tensor | None = None
    at_R: Tensor | None = None
    route: Route | None = None


class RowTable:
    """A table [n, d] with its own Adam (Kingma and Ba 2015); bias correction counts the table's steps.

    dense: rows outside a step follow their moments too, as torch.optim.Adam would move them. A sharded table of
    n rows has those from `low` on in `weight`.
    """

    def __init__(self, weight_nd: Tensor, dense: bool = False, low: int = 0, n: int | None = None):
        self.weight = weight_nd
        self.first = torch.zeros_like(weight_nd)
        self.second = torch.zeros_like(weight_nd)
        self.steps = 0
        self.dense = dense
        self.sharded = n is not None
        self.low, self.n = low, len(weight_nd) if n is None else n

    @staticmethod
    def random(
        shape: tuple[int, int], std: float, generator: torch.Generator, bounds: tuple[int, int] | None = None
    ) -> RowTable:
        """Normal rows from a CPU generator, the same on every device; of a sharded table, those within `bounds`.

        The generator gives the first block of rows and the root of seeds for the others, so that a worker makes its
        rows without all those before them.
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
        return RowTable(weight.mul_(std), False, low, n if bounds else None)

    def on(self, device: str | torch.device, dense: bool) -> RowTable:
        """These rows on a device, under lazy or dense Adam."""
        return RowTable(self.weight.to(device), dense, self.low, self.n if self.sharded else None)

    def parts(self) -> dict[str, Tensor]:
        """All that a checkpoint keeps of every row, alive."""
        return {"weight": self.weight, "first": self.first, "second": self.second}

    def moments(self) -> dict[str, Tensor]:
        """Adam's state, as `load_moments` takes it."""
        return {"first": self.first, "second": self.second, "steps": torch.tensor(self.steps)}

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        self.first.copy_(moments["first"])
        self.second.copy_(moments["second"])
        self.steps = int(moments["steps"])

    def rows(self, ids: Tensor) -> Tensor:
        """Rows that this worker holds."""
        return self.weight.index_select(0, ids - self.low if self.low else ids)

    def whole(self, engine: Engine) -> Tensor:
        """All rows [n, d] on every worker."""
        if not self.sharded:
            return self.weight
        with torch.no_grad():
            return engine.gather(self.weight, [b - a for a, b in _bounds(self.n, engine.world)])

    @torch.no_grad()
    def move(self, ids_R: Tensor, weight: Tensor, grad: Tensor, lr: float) -> None:
        """One Adam step for the distinct rows at `ids_R` of `weight`, now `weight` [R, d]; writes into it."""
        self.steps += 1
        if self.dense:
            grad = torch.zeros_like(self.weight).index_copy_(0, ids_R, grad)
            first, second, weight = self.first, self.second, self.weight
        else:
            first, second = self.first.index_select(0, ids_R), self.second.index_select(0, ids_R)
        count = torch.tensor(float(self.steps - 1), device=weight.device)  # which adam() raises by one
        adam(
            [weight], [grad], [first], [second], [], [count], fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1],
            lr=lr, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
        if not self.dense:
            for table, rows in ((self.first, first), (self.second, second), (self.weight, weight)):
                _put(table, ids_R, rows)


def _put(table_nd: Tensor, ids_R: Tensor, rows_Rd: Tensor) -> None:
    """Write distinct rows; on a CPU by numpy, which copies them whole where index_put_ walks their elements."""
    if table_nd.device.type == "cpu":
        table_nd.numpy()[ids_R.numpy()] = rows_Rd.numpy()
    else:
        table_nd.index_put_((ids_R,), rows_Rd)


def _bounds(n: int, world: int) -> list[tuple[int, int]]:
    return [share(n, rank, world) for rank in range(world)]


def routes(engine: Engine, wanted: Sequence[tuple[Tensor, int]]) -> list[Route]:
    """Tell the owners which rows this worker reads: ids_R of tables of n rows, all in two collectives."""
    world, device = engine.world, engine.device
    local, sends = [], []
    for ids_R, n in wanted:
        low_W = torch.tensor([low for low, _ in _bounds(n, world)], device=device)
        owner_R = torch.searchsorted(low_W, ids_R, right=True) - 1
        local.append((ids_R - low_W[owner_R]).int())
        sends.append(torch.bincount(owner_R, minlength=world))
    each = [len(wanted)] * world
    counts_WT = engine.exchange(torch.stack(sends, dim=1).flatten(), each, each).view(world, -1)
    send, receive = (x.T.tolist() for x in (torch.stack(sends, dim=1), counts_WT))
    asked = _swap(engine, [(ids.unsqueeze(1), *pair) for ids, *pair in zip(local, send, receive, strict=True)])
    out = []
    for ids, sent, received in zip(asked, send, receive, strict=True):
        asked_A = ids.squeeze(1).long()
        out.append(Route(sent, received, asked_A, *torch.unique(asked_A, return_inverse=True)))
    return out


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


Pulled = tuple[RowTable, Touched, Tensor]  # a table, what a step reads of it, and the leaf that `pull_rows` gave


@torch.no_grad()
def pull_rows(engine: Engine, wanted: Sequence[tuple[RowTable, Touched]]) -> list[Tensor]:
    """Leaves [R, d] of the rows that this worker reads, whose gradients `push_rows` takes."""
    parts = [(table, touched.route) for table, touched in wanted if touched.route is not None]
    if not parts:
        return [table.weight.index_select(0, touched.ids_R).requires_grad_() for table, touched in wanted]
    assert len(parts) == len(wanted)
    rows = _swap(engine, [(table.weight[route.asked_A], route.receive, route.send) for table, route in parts])
    return [x.requires_grad_() for x in rows]


def push_rows(engine: Engine, pulled: Sequence[Pulled], lr: float) -> None:
    """One Adam step of every table from the gradients that `Dense.backward` left on the leaves."""
    if engine.world == 1:
        for table, touched, rows_Rd in pulled:
            assert rows_Rd.grad is not None
            table.move(touched.ids_R, rows_Rd.detach(), rows_Rd.grad, lr)
        return
    if pulled[0][1].route is not None:
        _push_to_owners(engine, pulled, lr)
        return
    for (table, touched, _), grad_Gd in zip(pulled, _blocks(engine, pulled), strict=True):
        assert touched.ids_G is not None
        table.move(touched.ids_G, table.weight[touched.ids_G], grad_Gd, lr)


@torch.no_grad()
def _push_to_owners(engine: Engine, pulled: Sequence[Pulled], lr: float) -> None:
    parts = []
    for _, touched, rows_Rd in pulled:
        assert touched.route is not None
        assert rows_Rd.grad is not None
        parts.append((rows_Rd.grad, touched.route.send, touched.route.receive))
    for (table, touched, _), grad_Ad in zip(pulled, _swap(engine, parts), strict=True):
        route = touched.route
        assert route is not None
        grad_Gd = grad_Ad.new_zeros(len(route.rows_G), grad_Ad.shape[1])
        for at, grad in zip(route.at_A.split(route.receive), grad_Ad.split(route.receive), strict=True):
            grad_Gd.index_add_(0, at, grad)  # in rank order, so that every run adds alike
        table.move(route.rows_G, table.weight[route.rows_G], grad_Gd.div_(engine.world), lr)


def _blocks(engine: Engine, pulled: Sequence[Pulled]) -> list[Tensor]:
    """Every table's gradient of the global batch's rows [G, d], added up in one collective."""
    shapes = []
    for _, touched, rows_Rd in pulled:
        assert touched.ids_G is not None
        shapes.append((len(touched.ids_G), rows_Rd.shape[1]))
    flat = torch.zeros(sum(G * d for G, d in shapes), device=engine.device)
    blocks = [part.view(shape) for part, shape in zip(flat.split([G * d for G, d in shapes]), shapes, strict=True)]
    for block_Gd, (_, touched, rows_Rd) in zip(blocks, pulled, strict=True):
        assert touched.at_R is not None
        assert rows_Rd.grad is not None
        block_Gd.index_copy_(0, touched.at_R, rows_Rd.grad)
    engine.add_up([flat])
    engine.sent += flat.numel() * flat.element_size()
    return [block_Gd.div_(engine.world) for block_Gd in blocks]
