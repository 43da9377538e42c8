"""Rows of tables in files of several workers, read by range whatever their number."""

from __future__ import annotations

import pytest
import torch

from m3dist.data.parts import share
from m3dist.storage.folders import Folder
from m3dist.storage.shards import Shards


def written(folder: Folder, tables: dict[str, torch.Tensor], counts: dict[str, list[int]]) -> Shards:
    """Every worker's part of the tables. counts: rows of each."""
    parts = {name: x.split(counts[name]) for name, x in tables.items()}
    shards = Shards(folder, len(next(iter(counts.values()))))
    for rank in range(shards.count):
        shards.write(rank, {name: each[rank] for name, each in parts.items()})
    return shards


@pytest.mark.parametrize("user", [[7], [2, 5], [6, 0, 1], [0, 1, 0, 1, 1, 1, 1, 1, 1]])
def test_any_range_of_rows_is_read_from_the_files_that_have_it(folder: Folder, user: list[int]) -> None:
    """Also where parts differ in size, and where there are more workers than rows."""
    tables, count = {"user": torch.rand(7, 2), "item": torch.rand(11, 3)}, len(user)
    counts = {"user": user, "item": [high - low for low, high in (share(11, rank, count) for rank in range(count))]}
    shards = written(folder, tables, counts)
    assert len(folder.names()) == count
    for name, x in tables.items():
        for low, high in ((0, len(x)), (2, 5), (3, 4), (4, 4), (len(x) - 1, len(x))):
            out = torch.full((high - low, x.shape[1]), torch.nan)
            shards.read(name, out, low, counts[name])
            assert torch.equal(out, x[low:high])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_numbers_of_interactions_are_read_by_range(folder: Folder, dtype: torch.dtype) -> None:
    x, counts = torch.arange(100).to(dtype), [40, 0, 60]
    shards = written(folder, {"x": x}, {"x": counts})
    for low, high in ((0, 100), (10, 40), (39, 41), (70, 100)):
        out = torch.full((high - low,), -1, dtype=dtype)
        shards.read("x", out, low, counts)
        assert torch.equal(out, x[low:high])


def test_only_the_files_with_the_rows_are_opened(folder: Folder) -> None:
    shards = written(folder, {"x": torch.rand(9, 2)}, {"x": [3, 3, 3]})
    for name in folder.names()[1:]:
        folder.remove(name)
    out = torch.empty(2, 2)
    shards.read("x", out, 1, [3, 3, 3])
    with pytest.raises(OSError, match="rows-00001-of-00003"):
        shards.read("x", out, 2, [3, 3, 3])
