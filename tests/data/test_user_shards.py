"""Shards of users follow from the data alone, are of about equal size, and are read without the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from m3dist.data import shards, writer
from m3dist.data.dataset import Dataset
from m3dist.data.shards import Part
from m3dist.data.writer import Writer


@pytest.mark.parametrize("world", [1, 2, 3, 7, 300])
def test_workers_have_all_users_and_interactions_between_them(world: int) -> None:
    count_U = np.random.default_rng(0).integers(0, 40, 5000)
    bounds = shards.starts(count_U)
    parts = [shards.part(bounds, rank, world) for rank in range(world)]
    assert [x.users[0] for x in parts] == [0, *(x.users[1] for x in parts[:-1])]
    assert parts[-1].users[1] == 5000
    before = np.concatenate([[0], np.cumsum(count_U)])
    for part in parts:
        assert (part.pairs.start, part.pairs.stop) == tuple(before[list(part.users)])
        assert part.total == count_U.sum()
        assert Part.of(part.numbers) == part
    size = [part.pairs.stop - part.pairs.start for part in parts]
    if world < 10:
        assert max(size) - min(size) < 2 * count_U.sum() / shards.SHARDS


def test_there_are_few_shards_of_few_interactions_and_none_without_users() -> None:
    assert [len(shards.starts(np.full(10, n))[0]) - 1 for n in (0, 1, 6, 13, 7000)] == [1, 1, 1, 2, 256]
    user, pair = shards.starts(np.array([0, 0, 5000, 0]))  # a user is never cut
    assert (user[0], user[-1], pair[0], pair[-1]) == (0, 4, 0, 5000)
    assert set(pair.tolist()) == {0, 5000}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """300 users in row groups of a few hundred rows."""
    real = writer.recut
    monkeypatch.setattr(writer, "recut", lambda blocks: real(blocks, 500))
    user, item = np.nonzero(np.random.default_rng(2).random((300, 50)) < 0.3)
    split = np.random.default_rng(3).choice(3, len(user), p=(0.8, 0.1, 0.1))
    with Writer(tmp_path / "data") as out:
        pairs = {name: (user[split == at], item[split == at]) for at, name in enumerate(("train", "val", "test"))}
        out.interactions(300, 50, pairs)
        out.finish()
    return Dataset(tmp_path / "data")


def test_a_worker_reads_the_row_groups_of_its_users_alone(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = pq.ParquetFile.iter_batches

    def counted(file: pq.ParquetFile, size: int, groups: list[int], *arguments: object, **options: object) -> object:
        read.extend(groups)
        return real(file, size, groups, *arguments, **options)

    _ = dataset.shards
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    found = {}
    for split in ("train", "val", "test"):
        for part in (dataset.part(rank, 3) for rank in range(3)):
            read.clear()
            found[split, part.users] = dataset.of_users(split, part.users)
            assert dataset.of_users(split, part.users) is found[split, part.users]  # read once
            assert len(read) <= (4 if split == "train" else 2)
    whole = Dataset(dataset.root)
    for (split, (low, high)), (user, item) in found.items():
        all_users, all_items = whole.interactions(split)
        mine = (all_users >= low) & (all_users < high)
        np.testing.assert_array_equal(user, all_users[mine])
        np.testing.assert_array_equal(item, all_items[mine])
        for x, y in zip(whole.of_users(split, (low, high)), (user, item), strict=True):  # cut from what is held
            np.testing.assert_array_equal(x, y)


def test_degrees_are_counted_block_by_block(dataset: Dataset) -> None:
    held = Dataset(dataset.root)
    user, item = held.interactions("train")
    for each in (dataset, held):
        np.testing.assert_array_equal(each.degrees[0], np.bincount(user, minlength=300))
        np.testing.assert_array_equal(each.degrees[1], np.bincount(item, minlength=50))
    assert "train" not in dataset.held
