"""Rows of a step against plain loops and torch.optim.Adam."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from m3dist.distributed import rows
from m3dist.distributed.rows import Moved, RowTables, adam_rows, distinct, spread


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize("n", [300, 30_000])
def test_many_ids_are_summed_by_parts_on_a_device(
    counted: Any, M: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most are of one slot or of the spare row, which would keep one thread of a GPU busy; other slots have none."""
    longest = []

    def bags(at: torch.Tensor, x: torch.Tensor, start: torch.Tensor, mode: str) -> torch.Tensor:
        ends = torch.cat([start.cpu()[1:], torch.tensor([len(at)])])
        longest.append(int((ends - start.cpu()).max()))
        return F.embedding_bag(at, x, start, mode=mode)

    ids = torch.randint(n, (20_000,), generator=torch.Generator().manual_seed(1))
    ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(2))[:14_000]] = 7
    ids[-3_000:] = n
    x = randn(M, len(ids), 5)
    here, device_ids, device_x = distinct(ids, n), ids.to("standin"), x.to("standin")
    counted.clear()
    slots = distinct(device_ids, n)
    got = slots.sum(device_x)
    assert (counted.waits, counted.copies) == (0, 0)
    monkeypatch.setattr(rows, "F", SimpleNamespace(embedding_bag=bags))
    assert torch.equal(slots.sum(device_x).cpu(), got.cpu())
    assert max(longest) <= 200
    R = len(here.ids_R)
    want = torch.zeros(M, R, 5, dtype=torch.float64).index_add_(1, here.slot_L, x.double())
    torch.testing.assert_close(got.cpu()[:, :R].double(), want, rtol=1e-5, atol=1e-4)
    assert not got.cpu()[:, R:].any()


@pytest.mark.parametrize("ids", [[3, 1, 3, 9, 9, 0], [5], [4, 4, 4], [9, 2], [*range(10)]])
def test_distinct(ids: list[int]) -> None:
    slots = distinct(torch.tensor(ids), 9)
    assert slots.ids_R.tolist() == sorted(set(ids))
    assert slots.ids_R[slots.slot_L].tolist() == ids


@pytest.mark.parametrize("n", [9, 1000])
@pytest.mark.parametrize("M", [1, 3])
def test_on_a_device_the_same_slots_and_sums_in_a_fixed_size(counted: Any, n: int, M: int) -> None:
    """Padded with the spare row's id, whose sums are 0."""
    ids = torch.randint(min(n, 8), (40,), generator=torch.Generator().manual_seed(0))
    x = randn(M, 40, 5)
    here, device_ids, device_x = distinct(ids, n), ids.to("standin"), x.to("standin")
    counted.clear()
    there = distinct(device_ids, n)
    got = there.sum(device_x)
    assert (counted.waits, counted.copies) == (0, 0)
    R = len(here.ids_R)
    assert there.ids_R.shape == (min(40, n + 1),)
    assert torch.equal(there.ids_R.cpu()[:R], here.ids_R)
    assert (there.ids_R.cpu()[R:] == n).all()
    assert torch.equal(there.slot_L.cpu(), here.slot_L)
    assert torch.equal(got.cpu()[:, :R], here.sum(x))
    assert (got.cpu()[:, R:] == 0).all()


@pytest.mark.parametrize("M", [1, 2])
def test_sums_are_those_of_a_loop(M: int) -> None:
    ids, x = torch.tensor([3, 1, 3, 9, 9, 9]), randn(M, 6, 4)
    slots = distinct(ids, 9)
    for m in range(M):
        for r, row in enumerate(slots.ids_R.tolist()):
            torch.testing.assert_close(slots.sum(x)[m, r], x[m, ids == row].sum(0))


@pytest.mark.parametrize(("ids", "want"), [([1, 3, 4, 6, 8], [1, 3, 6]), ([2, 5], [2, 5, 9]), ([9], [9, 9, 9])])
@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_spread(counted: Any, ids: list[int], want: list[int], device: str) -> None:
    given = torch.tensor([*ids, *[9] * (6 - len(ids))]).to(device)
    counted.clear()
    got, there = spread(given, 9, 3)
    assert (counted.waits, counted.copies) == (0, 0)
    assert got.cpu().tolist() == want
    assert there.cpu().tolist() == [x < 9 for x in want]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_adam_moves_rows_as_torch_does(counted: Any, dense: bool, device: str) -> None:
    """Rows outside a step keep still, or follow their moments; bias correction counts the table's steps."""
    M, n, d, lr = 2, 7, 3, 0.05
    steps = [torch.tensor(x) for x in ([1, 4, 4, 7], [4, 0, 7, 7], [6, 1, 4, 2], [7, 7, 7, 7])]  # 7 is the spare row
    start = randn(M, n, d)
    tables = [RowTables(start.to(device), dense), RowTables((2 * start).to(device), dense)]
    rate = torch.full((), lr, device=device)
    want = [start.clone(), 2 * start]
    first, second = ([torch.zeros(M, n, d) for _ in want] for _ in range(2))
    for t, ids in enumerate(steps, start=1):
        grad = randn(M, len(ids), d, seed=t) * (ids < n)[:, None]
        slots = distinct(ids.to(device), n)
        summed = slots.sum(grad.to(device))
        counted.clear()
        adam_rows([Moved(x, slots.ids_R, x.rows(slots.ids_R), k * summed) for k, x in enumerate(tables, start=1)], rate)
        assert (counted.waits, counted.copies) == (0, 0)
        for k, weight in enumerate(want):
            full = torch.zeros(M, n, d)
            for at, row in enumerate(ids.tolist()):
                if row < n:
                    full[:, row] += (k + 1) * grad[:, at]
            moves = torch.ones(n, dtype=torch.bool) if dense else torch.isin(torch.arange(n), ids)
            a, b = first[k][:, moves] * 0.9 + full[:, moves] * 0.1, second[k][:, moves] * 0.999
            b += full[:, moves].square() * 0.001
            first[k][:, moves], second[k][:, moves] = a, b
            weight[:, moves] -= lr * (a / (1 - 0.9**t)) / ((b / (1 - 0.999**t)).sqrt() + 1e-8)
    for k, table in enumerate(tables):
        torch.testing.assert_close(table.weight.cpu(), want[k])
        torch.testing.assert_close(table.first.cpu(), first[k])
        torch.testing.assert_close(table.second.cpu(), second[k])
        assert float(table.steps) == len(steps)
        assert (table.rows(torch.full((1,), n, device=device)).cpu() == 0).all()
