"""Splits of interactions without one, and the id maps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from m3dist.data.dataset import DataError
from m3dist.data.importers import kcore
from m3dist.data.importers import splits as sp
from m3dist.data.importers.ids import Growing, IntegerIds, KnownIds, RowIds, StringIds, renumber

EIGHT = (0.8, 0.1, 0.1)


def run(rows, strategy, ratios=EIGHT, seed=0, cold=0.0):
    user, item, time = (np.array(x) for x in zip(*rows, strict=True))
    data = sp.Interactions(user.astype(np.int32), item.astype(np.int32), time.astype(np.float64))
    splits, duplicates, _ = sp.split(data, sp.Plan(strategy, ratios, seed, cold), "f.tsv")
    return {s: sorted(zip(u.tolist(), i.tolist(), strict=True)) for s, (u, i) in splits.items()}, duplicates


def many(n_users=60, n_items=50, n=2000, seed=1):
    rng = np.random.default_rng(seed)
    return list(zip(rng.integers(0, n_users, n), rng.integers(0, n_items, n), rng.permutation(n), strict=True))


def test_leave_last_out_by_hand():
    rows = [(0, 5, 30), (0, 6, 10), (0, 7, 20), (0, 8, 40), (1, 5, 1), (1, 6, 2)]
    splits, _ = run(rows, "leave-last-out")
    assert splits == {"train": [(0, 6), (0, 7), (1, 5), (1, 6)], "val": [(0, 5)], "test": [(0, 8)]}


def test_temporal_by_hand_with_ties():
    # ten interactions, the cuts at 8 and 9 fall among equal times: ties go by user and item
    rows = [(u, i, t) for u, i, t in zip([4, 3, 2, 1, 0] * 2, range(10), [0, 1, 2, 3, 4, 5, 6, 9, 9, 9], strict=True)]
    splits, _ = run(rows, "temporal")
    assert len(splits["train"]) == 8
    assert (splits["val"], splits["test"]) == ([(1, 8)], [(2, 7)])
    assert (0, 9) in splits["train"]


def test_random_counts_per_user():
    rows = [(u, i, 0) for u, n in enumerate([9, 10, 25, 100]) for i in range(n)]
    splits, _ = run(rows, "random")
    held = {s: [sum(u == v for v, _ in splits[s]) for u in range(4)] for s in splits}
    assert held == {"train": [9, 8, 21, 80], "val": [0, 1, 2, 10], "test": [0, 1, 2, 10]}


@pytest.mark.parametrize("strategy", sp.STRATEGIES)
def test_splits_are_a_partition_and_ignore_the_order_of_the_file(strategy, monkeypatch):
    rows = many()
    splits, duplicates = run(rows, strategy)
    everything = [pair for s in splits.values() for pair in s]
    distinct = {(int(u), int(i)) for u, i, _ in rows}
    assert sorted(everything) == sorted(distinct)
    assert duplicates == len(rows) - len(distinct) > 0
    assert all(splits.values())
    shuffled = [rows[i] for i in np.random.default_rng(2).permutation(len(rows))]
    assert run(shuffled, strategy)[0] == splits
    monkeypatch.setattr(sp, "_BLOCK", 100)  # nor does the size of blocks matter
    assert run(rows, strategy)[0] == splits


def test_blocks_of_users_hold_every_interaction(monkeypatch):
    monkeypatch.setattr(sp, "_BLOCK", 7)  # less than most users have
    rows = many()
    splits, _ = run(rows, "random")
    assert sorted(p for s in splits.values() for p in s) == sorted({(int(u), int(i)) for u, i, _ in rows})


def test_random_is_random():
    """Over many users the held-out items are spread evenly, and two seeds agree no more than chance."""
    rows = [(u, i, 0) for u in range(1000) for i in range(20)]
    splits = [run(rows, "random", seed=seed)[0] for seed in (0, 1)]
    counts = np.bincount([i for _, i in splits[0]["test"]], minlength=20)
    assert counts.sum() == 2000
    assert (abs(counts - 100) < 5 * np.sqrt(95)).all()
    assert abs(len(set(splits[0]["test"]) & set(splits[1]["test"])) - 200) < 5 * np.sqrt(180)


def test_seed_matters_for_random_only():
    rows = many()
    assert run(rows, "random", seed=0)[0] == run(rows, "random", seed=0)[0]
    assert run(rows, "random", seed=0)[0] != run(rows, "random", seed=1)[0]
    assert run(rows, "temporal", seed=0)[0] == run(rows, "temporal", seed=1)[0]


def test_the_earliest_of_duplicates_counts():
    rows = [(0, 1, 90), (0, 2, 20), (0, 3, 30), (0, 1, 10)]
    splits, duplicates = run(rows, "leave-last-out")
    assert splits == {"train": [(0, 1)], "val": [(0, 2)], "test": [(0, 3)]}
    assert duplicates == 1


def test_refusals():
    rows = many(n=20)
    with pytest.raises(DataError, match="add up to 1"):
        run(rows, "random", (0.8, 0.1, 0.2))
    with pytest.raises(DataError, match="add up to 1"):
        run(rows, "random", (0.9, 0.1, 0.0))
    with pytest.raises(DataError, match="expected one of random"):
        run(rows, "by-moon")
    with pytest.raises(DataError, match=r"f.tsv: split 'temporal' needs times"):
        sp.split(sp.Interactions(np.zeros(3, np.int32), np.arange(3, dtype=np.int32)), sp.Plan("temporal"), "f.tsv")
    for cold in (0.02, 0.99):  # one item, and all of them
        with pytest.raises(DataError, match=r"f.tsv: --cold .* at least one for val, one for test and one for train"):
            run(many(), "random", cold=cold)


@pytest.mark.parametrize("strategy", sp.STRATEGIES)
def test_cold_items_are_new_in_val_and_test(strategy):
    """A fifth of the items has no training interactions, half of them in val alone, half in test alone."""
    rows = many()
    splits, _ = run(rows, strategy, cold=0.2)
    assert sorted(p for s in splits.values() for p in s) == sorted({(int(u), int(i)) for u, i, _ in rows})
    items = {s: {i for _, i in pairs} for s, pairs in splits.items()}
    new = {s: items[s] - items["train"] for s in ("val", "test")}
    assert (len(new["val"]), len(new["test"])) == (5, 5)
    assert not new["val"] & items["test"]
    assert not new["test"] & items["val"]
    # the others are split as if the held-out items did not exist
    out = new["val"] | new["test"]
    rest, _ = run([row for row in rows if row[1] not in out], strategy)
    assert {s: [p for p in pairs if p[1] not in out] for s, pairs in splits.items()} == rest
    shuffled = [rows[i] for i in np.random.default_rng(2).permutation(len(rows))]
    assert run(shuffled, strategy, cold=0.2)[0] == splits
    assert run(rows, strategy, seed=1, cold=0.2)[0] != splits


def test_a_split_may_be_cold_alone():
    splits, _ = run(many(), "random", (1.0, 0.0, 0.0), cold=0.4)
    items = {s: {i for _, i in pairs} for s, pairs in splits.items()}
    assert [len(items[s]) for s in ("train", "val", "test")] == [30, 10, 10]
    assert len(items["train"] | items["val"] | items["test"]) == 50


@pytest.mark.parametrize("ids", [IntegerIds(), StringIds()])
def test_ids_across_batches(ids):
    """Codes of batches, renumbered, are positions in the sorted distinct ids."""
    rng = np.random.default_rng(0)
    given = [rng.integers(-50, 50, n) * 10**12 for n in (5, 200, 1, 90)]
    if isinstance(ids, StringIds):
        given = [np.array([f"id{x}" for x in batch]) for batch in given]
    codes = np.concatenate([ids.encode(pa.array(batch.tolist())) for batch in given])
    original, dense = ids.finish()
    everything = np.concatenate(given)
    assert original.to_pylist() == np.unique(everything).tolist()
    codes = renumber(codes, dense, rows=64)
    assert codes.dtype == np.int32
    assert np.array(original.to_pylist())[codes].tolist() == everything.tolist()


def test_dense_integers_stay():
    ids = IntegerIds()
    codes = ids.encode(pa.array([3, 1, 0, 2, 3]))
    assert renumber(codes, ids.finish()[1]).tolist() == [3, 1, 0, 2, 3]


def test_known_ids():
    assert KnownIds(pa.array([30, 10, 20])).encode(pa.array([10, 30, 30, 40])).tolist() == [1, 0, 0, -1]
    assert KnownIds(pa.array(["b", "a"])).encode(pa.array(["a", "c", "b"])).tolist() == [1, -1, 0]


def test_row_ids():
    """Ids behind the rows are items, too, up to the limit; the first row may have another number than 0."""
    ids = RowIds(5, 8)
    assert ids.encode(pa.array([4, -1, 0])).tolist() == [4, -1, 0]
    assert ids.finish()[0].to_pylist() == [0, 1, 2, 3, 4]
    assert ids.encode(pa.array([7, 8])).tolist() == [7, -1]
    assert ids.finish()[0].to_pylist() == [0, 1, 2, 3, 4, 5, 6, 7]
    ids = RowIds(3, 3, first=1)
    assert ids.encode(pa.array([1, 3, 0, 4])).tolist() == [0, 2, -1, -1]
    assert ids.finish()[0].to_pylist() == [1, 2, 3]


def test_growing():
    growing, rng = Growing(np.float64), np.random.default_rng(0)
    parts = [rng.random(n) for n in (3, 70000, 0, 130000)]
    for part in parts:
        growing.append(part)
    np.testing.assert_array_equal(growing.take(), np.concatenate(parts))
    assert len(growing.take()) == 0


def plan(rows, **given):
    user, item, time = (np.array(x) for x in zip(*rows, strict=True))
    data = sp.Interactions(user.astype(np.int32), item.astype(np.int32), time)
    found = sp.split(data, sp.Plan(**given), "f.tsv")
    return {s: sorted(zip(u.tolist(), i.tolist(), strict=True)) for s, (u, i) in found.splits.items()}, found.notes


def test_at_least_one_of_users_who_have_three():
    rows = [(u, i, 0) for u, n in enumerate([1, 2, 3, 9, 10, 40]) for i in range(n)]
    splits, notes = plan(rows, split="random", at_least_one=True)
    held = {s: [sum(u == v for v, _ in splits[s]) for u in range(6)] for s in splits}
    assert held == {"train": [1, 2, 1, 7, 8, 32], "val": [0, 0, 1, 1, 1, 4], "test": [0, 0, 1, 1, 1, 4]}
    assert not notes
    splits, notes = plan(rows, split="random")
    assert [sum(u == v for v, _ in splits["test"]) for u in range(6)] == [0, 0, 0, 0, 1, 4]
    assert notes[0].startswith("2 users with three interactions and more have none in val or in test; --at-least-one")


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([(0, i, 0) for i in range(9)], {"split": "random"}, r"val is empty: no user has the 10 .*; --at-least-one"),
        ([(0, 0, 0), (0, 1, 0)], {"split": "random", "at_least_one": True}, r"no user has three .*; --split temporal"),
        ([(0, 0, 0), (0, 1, 0)], {"split": "leave-last-out"}, r"no user has three interactions; --split temporal"),
        ([(0, 0, 0), (0, 1, 0)], {"split": "temporal"}, r"is empty: the cuts leave nothing there"),
    ],
)
def test_an_empty_split_says_what_helps(rows, given, message):
    with pytest.raises(DataError, match=rf"f.tsv: .*{message}"):
        plan(rows, **given)


@pytest.mark.parametrize("block", [1 << 22, 5])
def test_of_equal_times_the_later_row_is_the_later_one(block, monkeypatch):
    monkeypatch.setattr(sp, "_BLOCK", block)
    rows = [(1, 9, 5), (0, 9, 5), (0, 7, 5), (1, 3, 5), (0, 8, 5), (1, 7, 1), (0, 7, 5), (0, 6, 4)]
    splits, _ = plan(rows, split="leave-last-out")
    assert splits == {"train": [(0, 6), (0, 9), (1, 7)], "val": [(0, 7), (1, 9)], "test": [(0, 8), (1, 3)]}


@pytest.mark.parametrize("strategy", ["leave-last-out", "temporal"])
def test_the_order_of_the_file_in_place_of_times(strategy):
    rows = [(0, 9, 0), (0, 7, 0), (0, 8, 0), (0, 3, 0), (0, 1, 0)]
    splits, _ = plan(rows, split=strategy, file_order=True, ratios=(0.6, 0.2, 0.2))
    assert splits == {"train": [(0, 7), (0, 8), (0, 9)], "val": [(0, 3)], "test": [(0, 1)]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split": "temporal", "at_least_one": True}, "--at-least-one belongs to --split random"),
        ({"split": "random", "file_order": True}, "--file-order belongs to --split leave-last-out or temporal"),
        ({"split": "random", "val_from": "3"}, "--val-from and --test-from say where --split temporal cuts"),
        ({"split": "temporal", "val_from": "3"}, "--val-from without --test-from"),
        ({"cold": 0.2}, "--cold .* needs --split"),
    ],
)
def test_plans_that_are_none(given, message):
    with pytest.raises(DataError, match=message):
        sp.Plan(**given).check()


def test_k_core_by_hand():
    """User 2 has one item; without her item 3 has one user; without it user 1 has one item."""
    pairs = {0: [0, 1, 2], 1: [0, 3], 2: [3], 3: [0, 1, 2]}
    rows = [(u, i) for u, items in pairs.items() for i in items] * 2  # a pair counts once
    user, item = (np.array(x, dtype=np.int32) for x in zip(*rows, strict=True))
    users, items = kcore.keep({"all": (user, item)}, 4, 5, sp.Plan(min_user=2, min_item=2))
    assert users.tolist() == [True, False, False, True]
    assert items.tolist() == [True, True, True, False, False]
    users, items = kcore.keep({"all": (user, item)}, 4, 5, sp.Plan(min_user=2))
    assert users.tolist() == [True, True, False, True]
    assert items.tolist() == [True] * 5
    with pytest.raises(DataError, match=r"no interaction is left .* lower --min-user or --min-item"):
        kcore.keep({"all": (user, item)}, 4, 5, sp.Plan(min_user=9))


def test_k_core_against_a_plain_loop():
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, 300).astype(np.int32), rng.integers(0, 50, 300).astype(np.int32)
    found = kcore.keep(
        {"a": (user[:100], item[:100]), "b": (user[100:], item[100:])}, 40, 50, sp.Plan(min_user=5, min_item=4)
    )
    pairs = set(zip(user.tolist(), item.tolist(), strict=True))
    while True:
        kept = {(u, i) for u, i in pairs if sum(v == u for v, _ in pairs) >= 5 and sum(j == i for _, j in pairs) >= 4}
        if kept == pairs:
            break
        pairs = kept
    assert 0 < len(pairs) < 300
    assert np.flatnonzero(found[0]).tolist() == sorted({u for u, _ in pairs})
    assert np.flatnonzero(found[1]).tolist() == sorted({i for _, i in pairs})


def test_close_and_distant_integers_are_numbered_alike():
    """The table for integers that lie close together, and the search where they do not, and from one to the other."""
    rng = np.random.default_rng(0)
    for dtype, top in ((np.int64, 2**63 - 1), (np.uint64, 2**64 - 1)):
        batches = [rng.integers(0, 50, 40) for _ in range(3)] + [np.array([5, 10**7])]
        batches.append(np.array([top, 7], dtype=dtype))
        ids = IntegerIds(dtype)
        codes = np.concatenate([ids.encode(pa.array(np.array(batch, dtype=dtype))) for batch in batches])
        original, dense = ids.finish()
        everything = [int(x) for batch in batches for x in batch]
        assert original.to_pylist() == sorted(set(everything))
        assert np.array(original.to_pylist(), dtype=object)[dense[codes]].tolist() == everything
