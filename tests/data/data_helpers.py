"""A small data set, and how tests write and read it."""

from __future__ import annotations

import numpy as np

from m3dist.data.dataset import SPLITS, Dataset

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
