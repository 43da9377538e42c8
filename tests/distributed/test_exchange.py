"""Rows of a step between workers: what is asked, sent and moved, and that no more travels than is read."""

from __future__ import annotations

import pytest
import torch
from parallel_helpers import (
    spawn,
)

from m3dist.data.parts import share
from m3dist.distributed.engine import Engine
from m3dist.distributed.rows import RowTables, random_rows
from m3dist.distributed.tables import Wanted, pull, push, touch
from m3dist.seeding import torch_rng

pytestmark = pytest.mark.timeout(600)  # many workers may share few cores


def test_rows_are_drawn_without_those_of_others() -> None:
    n = 150_000  # more than are drawn at once
    rng = torch_rng(0, "t")
    whole = random_rows((n, 2), 0.5, rng)
    after = torch.rand(1, generator=rng)
    assert abs(float(whole.std()) - 0.5) < 0.01
    assert len(torch.unique(whole[:, 0])) > 0.98 * n  # no block is drawn twice; some floats are
    for world in (2, 3, 5, 40):
        parts = []
        for rank in range(world):
            rng = torch_rng(0, "t")
            parts.append(random_rows((n, 2), 0.5, rng, bounds=share(n, rank, world)))
            assert torch.equal(torch.rand(1, generator=rng), after)
        assert torch.equal(torch.cat(parts), whole)


USERS, ITEMS, STEPPED = 7, 11, 5  # rows of two tables, and steps


def start_of(n: int, members: int) -> torch.Tensor:
    return torch.randn(members, n, 3, generator=torch.Generator().manual_seed(n))


def ids_of(n: int, step: int, B: int = 12) -> torch.Tensor:
    """A global batch's, of which some repeat and some are the spare row's n."""
    return torch.randint(n + 1, (B,), generator=torch.Generator().manual_seed(100 * n + step))


def stepped(engine: Engine, shards: bool, dense: bool) -> list[dict[str, torch.Tensor]]:
    """All rows and moments of two tables after some steps, in which id l of the batch has the gradient l - 3 rows."""
    rank, world, device = engine.rank, engine.world, engine.device
    out = []
    tables = []
    for n in (USERS, ITEMS):
        low, high = share(n, rank, world) if shards else (0, n)
        owners = [share(n, other, world)[0] for other in range(world)] + [n]
        tables.append(RowTables(start_of(n, 2)[:, low:high].to(device), dense, owners if shards else None, rank))
    for step in range(STEPPED):
        batches = [ids_of(table.n, step).to(device) for table in tables]
        mine = [slice(*share(len(ids), rank, world)) for ids in batches]
        wanted = [
            Wanted(table, ids[at], lambda ids=ids: ids) for table, ids, at in zip(tables, batches, mine, strict=True)
        ]
        touched = touch(engine, wanted)
        rows = pull(engine, touched)
        grads = []
        for x, row_MRd, at in zip(touched, rows, mine, strict=True):
            slope_L = torch.arange(12.0, device=device)[at]
            of_L = slope_L[:, None] - 3 * row_MRd[:, x.slots.slot_L]
            there_L = x.slots.ids_R[x.slots.slot_L] < x.table.n
            grads.append(x.slots.sum(of_L * there_L[:, None]))
        push(engine, touched, rows, grads)(torch.tensor(0.1, device=device))
    for table in tables:
        kept = {name: x.cpu().clone() for name, x in table.parts().items()}
        assert float(table.steps) == STEPPED
        assert (table.rows(torch.tensor([table.weight.shape[1]], device=device)) == 0).all()  # the spare row
        out.append({"whole": table.whole(engine).cpu().clone(), **kept})
    return out


def by_adam(n: int, dense: bool) -> torch.Tensor:
    """The same by torch's optimisers, every member alone."""
    out = []
    for start in start_of(n, 2):
        weight = start.clone().requires_grad_()
        # SparseAdam corrects the bias by the table's steps, too
        optimizer = torch.optim.Adam([weight], lr=0.1) if dense else torch.optim.SparseAdam([weight], lr=0.1)
        for step in range(STEPPED):
            ids = ids_of(n, step)
            there = ids < n
            slope = torch.arange(12.0)[there][:, None]
            grad = slope - 3 * weight.detach()[ids[there]]
            sparse = torch.sparse_coo_tensor(ids[there][None], grad, weight.shape).coalesce()
            weight.grad = sparse.to_dense() if dense else sparse
            optimizer.step()
        out.append(weight.detach())
    return torch.stack(out)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("shards", [False, True])
def test_one_worker_moves_rows_as_adam_does(shards: bool, dense: bool) -> None:
    for n, table in zip((USERS, ITEMS), stepped(Engine(), shards, dense), strict=True):
        torch.testing.assert_close(table["whole"], by_adam(n, dense), rtol=1e-5, atol=1e-6)


CHOICES = [(shards, dense) for shards in (False, True) for dense in (False, True)]


def all_stepped(rank: int, world: int) -> list[list[dict[str, torch.Tensor]]]:
    return [stepped(Engine(rank, world), *choice) for choice in CHOICES]


@pytest.mark.parametrize("world", [2, 3])
def test_workers_move_rows_as_one_does(world: int) -> None:
    """Whole tables are the same bits everywhere; of sharded ones each worker has its part."""
    results = spawn(world, all_stepped)
    for at, (shards, dense) in enumerate(CHOICES):
        for k, (n, alone) in enumerate(zip((USERS, ITEMS), stepped(Engine(), False, dense), strict=True)):
            for rank in range(world):
                ours = results[rank][at][k]
                torch.testing.assert_close(ours["whole"], alone["whole"], rtol=1e-5, atol=1e-6)
                assert torch.equal(ours["whole"], results[0][at][k]["whole"])
                low, high = share(n, rank, world) if shards else (0, n)
                for name, x in alone.items():
                    if name != "whole":
                        torch.testing.assert_close(ours[name], x[low:high], rtol=1e-5, atol=1e-6)


class ByHost(Engine):
    """A worker whose device has no collectives of its own."""

    def exchange(self, x: torch.Tensor, send: list[int], receive: list[int]) -> torch.Tensor:
        return super().exchange(x.cpu(), send, receive).to(self.device)

    def gather(self, x_cd: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return super().gather(x_cd.cpu(), counts).to(self.device)


def stepped_on_a_device(rank: int, world: int) -> list[list[dict[str, torch.Tensor]]]:
    from benchmarks.standin import NAME, Standin

    with Standin():
        return [stepped(ByHost(rank, world, NAME), True, dense) for dense in (False, True)]


def test_on_a_device_slots_that_no_id_needs_change_nothing() -> None:
    """Shapes do not follow the data there: rows that a worker reads and owners move have spare ones behind them."""
    on_device, here = spawn(2, stepped_on_a_device), spawn(2, all_stepped)
    for ours, theirs in zip(on_device, here, strict=True):
        wanted = [tables for (shards, _), tables in zip(CHOICES, theirs, strict=True) if shards]
        for found, want in zip(ours, wanted, strict=True):
            for x, y in zip(found, want, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def one_step(rank: int, world: int, n: int) -> tuple[int, list[torch.Tensor]]:
    """Bytes of a step over the same ids scattered in a table of n rows, and that table's moved rows."""
    engine = Engine(rank, world)
    ids = torch.tensor([[0, 1, 4, 6], [1, 4, 5, 7]][rank]) * (n // 8)
    table = RowTables(torch.zeros(1, n // world, 3), owners=[0, n // 2, n], rank=rank)
    touched = touch(engine, [Wanted(table, ids, lambda: ids)])
    rows = pull(engine, touched)
    push(engine, touched, rows, [torch.full_like(rows[0], rank + 1.0)])(torch.tensor(0.1))
    at = torch.tensor([0, 1, 2, 3]) * (n // 8)
    return engine.sent, [table.first[0, at] * 10, table.weight[0, at]]


def steps_of(rank: int, world: int, sizes: list[int]) -> list[tuple[int, list[torch.Tensor]]]:
    return [one_step(rank, world, n) for n in sizes]


def test_bytes_do_not_grow_with_the_table() -> None:
    both = spawn(2, steps_of, [80, 800_000])
    few, many = ([ranks[at] for ranks in both] for at in (0, 1))
    assert [sent for sent, _ in few] == [sent for sent, _ in many]
    # worker 0 asks for two rows of worker 1, gives it one, and pushes two gradients; the other way about
    assert [sent for sent, _ in few] == [2 * 4 + 1 * 12 + 2 * 12, 1 * 4 + 2 * 12 + 1 * 12]
    for moved in (few, many):
        first = torch.cat([kept[0] for _, kept in moved])
        torch.testing.assert_close(first[:, 0], torch.tensor([1.0, 3, 0, 0, 3, 2, 1, 2]))  # of the ids 0 to 7
        want = torch.where(first > 0, -0.1, 0.0)
        torch.testing.assert_close(torch.cat([kept[1] for _, kept in moved]), want)


def replicated(rank: int, world: int) -> list[tuple[int, list[float]]]:
    out = []
    for n in (80, 8000):
        engine = Engine(rank, world)
        ids = torch.tensor([[0, 1, 4, 6], [1, 4, 5, 7]])
        table = RowTables(torch.zeros(1, n, 3))
        share_L = ids[rank] if rank else torch.cat([ids[rank], torch.tensor([n])])  # and a place without an interaction
        touched = touch(engine, [Wanted(table, share_L, ids.flatten)])
        rows = pull(engine, touched)
        there_R1 = (touched[0].slots.ids_R < n).float().unsqueeze(1)
        push(engine, touched, rows, [torch.ones_like(rows[0]) * there_R1])(torch.tensor(0.1))
        out.append((engine.sent, (table.first[0, :8, 0] * 10).tolist()))
    return out


def test_workers_with_whole_tables_add_up_the_rows_of_the_global_batch_alone() -> None:
    for each in spawn(2, replicated):
        for sent, first in each:
            assert sent == 6 * 3 * 4  # the ids 0, 1, 4, 5, 6, 7
            assert first == pytest.approx([1, 2, 0, 0, 2, 1, 1, 1])
