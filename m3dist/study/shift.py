"""Data sets with two test sets, one like the training data and one shifted, so that a model is trained once for both.

Each is a prepared data set whose test split is the shifted one, and a table of pairs that are held out alike but not
shifted (`inside.parquet` beside dataset.json). Validation data is not shifted: nobody can choose on what is to come.

Shapes: n interactions, U users, I items.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3dist.config import Synthetic
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer
from m3dist.seeding import numpy_rng

Pairs = tuple[np.ndarray, np.ndarray]
_HELD = 0.1  # of all interactions, in each of the three held-out sets
_INSIDE = "inside"  # the pairs that are held out and not shifted


def popularity_balanced(source: Dataset, root: Path, seed: int = 0) -> Path:
    """Test pairs drawn with probability 1 / popularity of their item, so that items are near alike in the test set.

    All interactions are pooled; 10 % become the balanced test set (of an item at most half). Of the rest, uniformly,
    as many each become the unshifted test pairs and validation.
    """
    if _done(root, source.fingerprint):
        return root
    rng = numpy_rng(seed, "popularity-balanced")
    pooled = [source.interactions(split) for split in ("train", "val", "test")]
    user, item = (np.concatenate([part[at] for part in pooled]) for at in (0, 1))
    n, popularity = len(user), np.bincount(item, minlength=source.n_items)
    held = int(n * _HELD)
    # weighted draws without replacement: the largest of log(u) / w (Efraimidis and Spirakis 2006)
    key = np.log(rng.random(n)) * popularity[item]
    order = np.lexsort((-key, item))  # within an item, who is drawn first
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n) - np.searchsorted(item[order], item[order])
    key[rank >= popularity[item] // 2] = -np.inf
    shifted = np.argsort(-key)[:held]
    shifted = shifted[key[shifted] > -np.inf]
    rest = np.setdiff1d(np.arange(n), shifted)
    rng.shuffle(rest)
    inside, val, train = rest[:held], rest[held : 2 * held], rest[2 * held :]
    parts = (("train", train), ("val", val), ("test", shifted), (_INSIDE, inside))
    splits = {name: (user[at], item[at]) for name, at in parts}
    return _write(root, source, splits, "popularity-balanced", source.fingerprint)


def planted_flip(root: Path, config: Synthetic, seed: int = 0) -> Path:
    """Planted data, whose test split has the spurious influence reversed; half of validation is held out unshifted."""
    if _done(root, "planted"):
        return root
    made = root.with_name(f"{root.name}-planted")
    synthetic.write(made, config, seed)
    source = Dataset(made)
    user, item = source.interactions("val")
    first = np.zeros(len(user), dtype=bool)
    for chosen in np.split(np.arange(len(user)), np.flatnonzero(np.diff(user)) + 1):
        first[numpy_rng(seed, "flip", int(user[chosen[0]])).permutation(chosen)[: max(1, len(chosen) // 2)]] = True
    splits = {name: source.interactions(name) for name in ("train", "test")}
    splits |= {"val": (user[~first], item[~first]), _INSIDE: (user[first], item[first])}
    return _write(root, source, splits, "planted-flip", "planted")


def inside(root: Path) -> Pairs:
    """The held-out pairs that are not shifted."""
    table = pq.read_table(root / "inside.parquet")
    return table["user"].to_numpy(), table["item"].to_numpy()


def _done(root: Path, origin: str) -> bool:
    if not (root / "inside.parquet").is_file():
        return False
    if Dataset(root).meta["provenance"].get("origin") != origin:
        raise ValueError(f"{root}: was made from other data; choose another --out or delete it")
    return True


def _write(root: Path, source: Dataset, splits: dict[str, Pairs], shift: str, origin: str) -> Path:
    """splits: the data set's three, and the pairs that are not shifted."""
    user, item = splits[_INSIDE]
    with Writer(root) as out:
        for name in source.modalities:
            out.features(name, source.features(name), source.present(name))
            truth = source.truth(name)
            if truth is not None:
                out.truth(name, truth)
        own = {name: pairs for name, pairs in splits.items() if name != _INSIDE}
        out.interactions(source.n_users, source.n_items, own)
        out.finish(source.user_ids, source.item_ids, {"format": shift, "origin": origin})
    pq.write_table(pa.table({"user": user, "item": item}), root / "inside.parquet")
    return root
