"""Contiguous parts of about one size."""

from __future__ import annotations

import pytest

from m3dist.data.parts import share


@pytest.mark.parametrize("n", [0, 1, 7, 103])
@pytest.mark.parametrize("world", [1, 2, 3, 10])
def test_parts_are_contiguous_complete_and_of_about_one_size(n: int, world: int) -> None:
    parts = [range(*share(n, rank, world)) for rank in range(world)]
    assert [x for part in parts for x in part] == list(range(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
