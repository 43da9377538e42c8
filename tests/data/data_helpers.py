"""A small data set, and how tests write and read it."""

from __future__ import annotations

import numpy as np

from m3dist.data.dataset import SPLITS, Dataset
from m3dist.data.importers.common import Source

# user, item; item 3 is cold, users 0..2, items 0..3
SMALL = {"train": [(0, 0), (0, 1), (1, 1), (2, 2)], "val": [(0, 2), (1, 3)], "test": [(2, 0), (1, 0)]}
FEATURES = np.arange(8, dtype=np.float32).reshape(4, 2)


def pairs(dataset: Dataset) -> dict[str, list[tuple[int, int]]]:
    """Every split as sorted pairs."""
    return {s: list(zip(*(x.tolist() for x in dataset.interactions(s)), strict=True)) for s in SPLITS}


def sorted_pairs(splits: dict[str, list[tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    return {split: sorted(rows) for split, rows in splits.items()}


def text(rows: list[tuple], header: str = "userID\titemID", sep: str = "\t") -> str:
    return "".join(line + "\n" for line in [header, *(sep.join(map(str, row)) for row in rows)])


def everything(source: Source) -> set[tuple]:
    """All pairs of a source by original ids."""
    items = source.item_ids["id"] if hasattr(source.item_ids, "column_names") else source.item_ids
    users, items = source.user_ids.to_pylist(), items.to_pylist()
    return {(users[u], items[i]) for split in source.splits.values() for u, i in zip(*split, strict=True)}


def grid(users: int = 4, items: int = 10, prefix: tuple[str, str] = ("u", "b")) -> list[tuple[str, str]]:
    """Every user with every item: u0,b0 to u3,b9."""
    return [(f"{prefix[0]}{u}", f"{prefix[1]}{i}") for u in range(users) for i in range(items)]
