"""Splits of interactions without one, and the id maps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from m3dist.data.dataset import DataError
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
