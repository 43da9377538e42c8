"""Made data sets of known sizes: interactions drawn unevenly over users and items, features at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer


@dataclass(frozen=True)
class Size:
    users: int
    items: int
    pairs: int  # training interactions
    widths: tuple[int, ...]  # of the modalities


SIZES = {
    "ml100k": Size(942, 1361, 42151, (384, 128, 128)),
    "ml1m": Size(6036, 3081, 346501, (384, 128, 128)),
    "tiktok": Size(36656, 76085, 726065, (128, 128, 128)),
    "movielens": Size(55485, 5986, 1239508, (2048, 128, 100)),
}


def pairs(size: Size, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n distinct (user, item) pairs; popular ones are drawn more often."""
    assert n <= size.users * size.items / 2
    kept = np.zeros(0, dtype=np.int64)
    while len(kept) < n:
        user = (size.users * rng.random(n) ** 1.5).astype(np.int64)
        item = (size.items * rng.random(n) ** 2).astype(np.int64)
        kept = np.unique(np.concatenate([kept, user * size.items + item]))
    kept = rng.permutation(kept)[:n]
    return kept // size.items, kept % size.items


def made(size: Size, root: Path) -> Dataset:
    """Write a data set of this size at `root`, once: at most 5,000 held-out pairs a split beside the training ones."""
    if not (root / "dataset.json").is_file():
        rng = np.random.default_rng(0)
        held = min(5000, size.pairs // 10)
        user, item = pairs(size, size.pairs + 2 * held, rng)
        names = ("train", "val", "test")
        cuts = (0, size.pairs, size.pairs + held, size.pairs + 2 * held)
        with Writer(root) as out:
            for m, width in enumerate(size.widths):
                out.features(f"modality{m}", rng.standard_normal((size.items, width), dtype=np.float32))
            splits = {name: (user[a:b], item[a:b]) for name, a, b in zip(names, cuts[:-1], cuts[1:], strict=True)}
            out.interactions(size.users, size.items, splits)
            out.finish()
    return Dataset(root)
