"""How many things are cut into contiguous parts for workers and files."""

from __future__ import annotations


def share(n: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous part of 0..n-1 that belongs to `rank`; sizes differ by at most one."""
    return n * rank // world, n * (rank + 1) // world
