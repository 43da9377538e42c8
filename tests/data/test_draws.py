"""What a step draws: the same numbers for every number of workers, on every device and after every resume."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from m3dist.data import shards
from m3dist.data.draws import Batch, Draws, Layout, Pairs, Plan, mix, normal, order, scattered
from m3dist.data.parts import share

N, U, I = 1003, 40, 17
USER, ITEM = (torch.arange(N) * U // N), (torch.arange(N) * 7 % I).int()
BOUNDS = shards.starts(torch.bincount(USER, minlength=U).numpy())
DRAWN = [field.name for field in fields(Batch) if field.name not in ("gather", "filled")]


def drawn(plan: Plan, size: int = 250, groups: int = 1, part: tuple[int, int] = (0, 1), **more: Any) -> Draws:
    device = more.pop("device", "cpu")
    pool = more.pop("pool", None)
    mine = shards.part(BOUNDS, *part)
    pairs = Pairs(USER[mine.pairs].to(device), ITEM[mine.pairs].to(device), U, I, pool, mine)
    return Draws(pairs, plan, Layout.of(N, size, groups, mine.pairs, BOUNDS[1].tolist()), more.pop("key", 5))


def numbers(batch: Batch, draws: Draws) -> list[int]:
    """The interactions of a worker's batch by their numbers among all."""
    return (batch.index_Pb[batch.valid_Pb] + draws.pairs.shards[0]).tolist()


def epoch(draws: Draws, number: int = 0) -> list[Batch]:
    draws.seek(number, 0)
    out = []
    for _ in range(draws.steps):
        out.append(draws.draw())
        draws.advance()
    return out


def test_mix_is_splitmix64() -> None:
    """The first numbers of the published generator seeded with 1234567."""
    golden = 0x9E3779B97F4A7C15
    state = [(1234567 + golden * i + (1 << 63)) % (1 << 64) - (1 << 63) for i in (1, 2, 3, 4, 5)]
    got = [x % (1 << 64) for x in mix(torch.tensor(state)).tolist()]
    assert got == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


@pytest.mark.parametrize("bounds", [[0, 1], [0, 0, 2, 2], [5, 700, 1005], [0, (1 << 20) + 5], [3, 1 << 20, 3 << 19]])
def test_an_order_is_a_permutation_of_each_shard(bounds: list[int]) -> None:
    got, n = torch.cat([*order(bounds, 3, torch.device("cpu"))]), bounds[-1] - bounds[0]
    assert len(got) == n
    for low, high in itertools.pairwise(x - bounds[0] for x in bounds):
        assert torch.equal(got[low:high].sort().values, torch.arange(low, high))
    if n > 100:
        assert (got != torch.arange(n)).double().mean() > 0.9


def test_the_order_of_a_shard_does_not_depend_on_the_others_of_a_worker() -> None:
    whole = torch.cat([*order([0, 40, 90, 100], 3, torch.device("cpu"))])
    assert torch.equal(torch.cat([*order([40, 90], 3, torch.device("cpu"))]) + 40, whole[40:90])


@pytest.mark.parametrize("count", [3, 128, 1000])
def test_numbers_are_scattered_alike_whoever_holds_them(count: int) -> None:
    whole = scattered(slice(0, 50_000), count, 7)
    assert whole.dtype == (torch.int8 if count <= 128 else torch.int16)
    assert torch.equal(scattered(slice(40_001, 40_100), count, 7), whole[40_001:40_100])
    share_C = torch.bincount(whole, minlength=count) / len(whole)
    assert len(share_C) == count
    assert (share_C * count - 1).abs().max() < 6 * (count / len(whole)) ** 0.5


def test_orders_of_two_epochs_and_of_two_keys_differ() -> None:
    runs = ((5, 0), (5, 1), (6, 0))
    a, b, c = (
        torch.cat([x.index_Pb[x.valid_Pb] for x in epoch(drawn(Plan(3), key=key), number)]) for key, number in runs
    )
    assert (a != b).float().mean() > 0.9
    assert (a != c).float().mean() > 0.9


@pytest.mark.parametrize("groups", [1, 4, 5, 7])
def test_an_epoch_visits_every_interaction_once(groups: int) -> None:
    batches = epoch(drawn(Plan(2), groups=groups))
    seen = torch.cat([x.index_Pb[x.valid_Pb] for x in batches])
    assert sorted(seen.tolist()) == list(range(N))
    assert [int(x.size) for x in batches] == [201, 201, 201, 200, 200]
    assert len({x.index_Pb.shape for x in batches}) == 1
    for batch in batches:
        there, index = batch.valid_Pb, batch.index_Pb[batch.valid_Pb].long()
        assert int(there.sum()) == int(batch.size)
        assert torch.equal(batch.user_Pb[there], USER[index])
        assert torch.equal(batch.item_Pb[there], ITEM[index].long())
        assert (batch.user_Pb[~there] == U).all()
        assert (batch.item_Pb[~there] == I).all()
        count_P = there.sum(1)
        assert count_P.max() - count_P.min() <= 2


@pytest.mark.parametrize("groups", [1, 4, 5, 7])
@pytest.mark.parametrize("world", [2, 3, 5, 30])
def test_workers_parts_make_the_global_batch(world: int, groups: int) -> None:
    """Every interaction is some worker's, and meets the negatives of its group there."""

    def samples(batch: Batch, draws: Draws) -> list[tuple[int, tuple[int, ...]]]:
        each = batch.negative.unsqueeze(1).expand(*batch.valid_Pb.shape, -1)[batch.valid_Pb]
        return [*zip(numbers(batch, draws), map(tuple, each.tolist()), strict=True)]

    alone = drawn(Plan(6), groups=groups)
    workers = [drawn(Plan(6), groups=groups, part=(rank, world)) for rank in range(world)]
    parts = [epoch(draws, 2) for draws in workers]
    for step, batch in enumerate(epoch(alone, 2)):
        mine = [part[step] for part in parts]
        found = [x for part, draws in zip(mine, workers, strict=True) for x in samples(part, draws)]
        assert sorted(found) == sorted(samples(batch, alone))
        for part in mine:
            assert torch.equal(part.size, batch.size)
            assert torch.equal(part.negative_B, batch.negative_B)
            for valid_b, filled in zip(part.valid_Pb, part.filled or (), strict=True):
                assert not valid_b[filled:].any()


@pytest.mark.parametrize(("shards", "groups", "world"), [(15, 5, 5), (15, 15, 15), (16, 4, 2), (16, 8, 2)])
def test_workers_share_no_group_where_groups_are_runs_of_shards(shards: int, groups: int, world: int) -> None:
    """A worker reads the negatives of no more than it trains; groups by position alone would lie across workers."""
    cuts = [N * at // shards for at in range(shards + 1)]
    own, apart = [], []
    for rank in range(world):
        low, high = share(shards, rank, world)
        mine = slice(cuts[low], cuts[high])
        own.append(len(Layout.of(N, 250, groups, mine, cuts).position_Pb))
        apart.append(len(Layout.of(N, 250, groups, mine).position_Pb))
    assert own == [groups // world] * world
    assert sum(apart) > groups


def test_groups_are_of_equal_size_where_shards_are_not() -> None:
    uneven = [0, 500, *range(553, N, 50), N]  # half of all interactions are one user's
    by_shards, by_position = (Layout.of(N, 250, 4, None, cuts) for cuts in (uneven, None))
    assert torch.equal(by_shards.position_Pb, by_position.position_Pb)
    assert by_shards.position_Pb.shape == (4, 51)


def test_the_global_batch_is_gathered_from_workers() -> None:
    """Every shard gives as much to each step as to another, but for one interaction."""
    alone, parts = drawn(Plan(6)), [drawn(Plan(6), part=(rank, 3)) for rank in range(3)]
    per_step = []
    for step in range(alone.steps):
        batches = []
        for draws in (alone, *parts):
            draws.seek(1, step)
            batches.append(draws.draw())
        whole, *mine = batches
        rows = [x.item_Pb.view(-1, 1).int() for x in mine]
        got = replace(mine[1], gather=lambda x, rows=rows: torch.cat(rows)).item_B
        assert sorted(got[got < I].tolist()) == sorted(whole.item_B[whole.item_B < I].tolist())
        per_step.append([int(x.valid_Pb.sum()) for x in mine])
    for counts in zip(*per_step, strict=True):
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("world", [2, 3])
def test_workers_parts_with_negatives_of_each_positive(world: int) -> None:
    def samples(batch: Batch, draws: Draws) -> list[tuple[int, tuple[int, ...]]]:
        return [*zip(numbers(batch, draws), map(tuple, batch.negative[batch.valid_Pb].tolist()), strict=True)]

    alone = drawn(Plan(4, per_positive=True))
    workers = [drawn(Plan(4, per_positive=True), part=(rank, world)) for rank in range(world)]
    parts = [epoch(draws) for draws in workers]
    for step, batch in enumerate(epoch(alone)):
        assert batch.negative.shape == (1, 201, 4)
        found = [x for part, draws in zip(parts, workers, strict=True) for x in samples(part[step], draws)]
        assert sorted(found) == sorted(samples(batch, alone))


def test_negatives_of_a_group_come_from_equal_stretches() -> None:
    for batch in epoch(drawn(Plan(6), groups=4)):
        assert batch.negative.shape == (4, 6)
        low_N, high_N = torch.arange(6) * I // 6, -(-torch.arange(1, 7) * I // 6)
        assert ((batch.negative >= low_N) & (batch.negative < high_N)).all()
        assert len({tuple(row) for row in batch.negative.tolist()}) == 4


@pytest.mark.parametrize("plan", [Plan(6), Plan(50), Plan(7, per_positive=True)])
def test_negatives_are_uniform_over_items(plan: Plan) -> None:
    """Also where stretches are no whole numbers of items; 40,000 draws and more."""
    draws = drawn(plan, groups=1 if plan.per_positive else 5)
    ids = torch.cat([x.negative.flatten() for number in range(300) for x in epoch(draws, number)])
    share_I = torch.bincount(ids, minlength=I) / len(ids)
    assert (share_I * I - 1).abs().max() < 0.05


def test_negatives_of_a_pool() -> None:
    pool = torch.tensor([3, 4, 11, 16])
    for plan in (Plan(2), Plan(3, per_positive=True)):
        ids = torch.cat([x.negative.flatten() for x in epoch(drawn(plan, pool=pool))])
        assert sorted(set(ids.tolist())) == pool.tolist()


def test_columns_are_distinct_and_uniform() -> None:
    draws = drawn(Plan(2, neighbours=5, columns=2, hashes=3))
    batches = [x for number in range(200) for x in epoch(draws, number)]
    assert all(len(set(x.columns_s.tolist())) == 2 for x in batches)
    share_5 = torch.bincount(torch.cat([x.columns_s for x in batches]), minlength=5) / (2 * len(batches))
    assert (share_5 * 5 - 1).abs().max() < 0.1
    assert len({int(x) for batch in batches for x in batch.hashes_X}) == 3 * len(batches)


def test_normal_numbers() -> None:
    x = normal(mix(torch.arange(100_000)))
    assert float(x.mean()) == pytest.approx(0, abs=0.01)
    assert float(x.std()) == pytest.approx(1, abs=0.01)
    assert float((x.abs() > 1.96).float().mean()) == pytest.approx(0.05, abs=0.003)


def test_a_step_depends_on_where_it_is_alone() -> None:
    """A run that goes to the third step of the second epoch at once sees what one that came there saw."""
    plan = Plan(3, neighbours=4, columns=1, hashes=2)
    walked, jumped = drawn(plan, groups=2), drawn(plan, groups=2)
    epoch(walked, 0)
    want = epoch(walked, 1)[3]
    jumped.seek(1, 3)
    got = jumped.draw()
    for name in DRAWN:
        assert torch.equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("plan", [Plan(3, neighbours=4, columns=2, hashes=2), Plan(3, per_positive=True)])
@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_on_a_device_the_same_bits_without_waiting(counted: Any, plan: Plan, part: tuple[int, int]) -> None:
    pool = torch.tensor([3, 4, 11, 16])
    here = drawn(plan, part=part, pool=pool)
    there = drawn(plan, part=part, pool=pool.to("standin"), device="standin")
    want = epoch(here, 1)
    there.seek(1, 0)
    counted.clear()
    got = []
    for _ in range(there.steps):
        got.append(there.draw())
        there.advance()
    assert (counted.waits, counted.copies) == (0, 0)
    assert counted.launches <= 60 * there.steps
    for a, b in zip(got, want, strict=True):
        for name in DRAWN:
            assert torch.equal(getattr(a, name).cpu(), getattr(b, name)), name
