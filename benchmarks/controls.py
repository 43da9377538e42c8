"""Copies of a prepared data set for controls: with fewer interactions, or with features that mean nothing.

`python -m benchmarks.controls sparse SRC DST --train 6` keeps as many training interactions of every user as asked,
drawn at random; users who have fewer keep theirs. With --test, validation and test are drawn anew as well, from all
interactions of a user: so many for each, which makes a set as sparse as those of users whom nobody knows well. Without
it, validation and test stay as they are.

`python -m benchmarks.controls shuffled SRC DST` gives every item the features of another, those of all modalities
together, so that a gain which stays has nothing to do with content.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from m3dist.data.dataset import SPLITS, Dataset
from m3dist.data.writer import Writer

Pairs = tuple[np.ndarray, np.ndarray]  # users and items


def places(user_n: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The place of every interaction in a random order of its user's, from 0."""
    order_n = np.lexsort((random.random(len(user_n)), user_n))
    sorted_n = user_n[order_n]
    place_n = np.empty(len(user_n), np.int64)
    place_n[order_n] = np.arange(len(user_n)) - np.searchsorted(sorted_n, sorted_n)
    return place_n


def thinned(splits: dict[str, Pairs], train: int, test: int, seed: int) -> dict[str, Pairs]:
    """The splits with `train` training interactions of a user, and `test` for each of the others unless it is 0."""
    drawn = splits if test else {"train": splits["train"]}
    user_n, item_n = (np.concatenate([pair[side] for pair in drawn.values()]) for side in (0, 1))
    place_n = places(user_n, np.random.default_rng(seed))
    bounds = {"train": (0, train)}
    if test:
        bounds |= {"val": (train, train + test), "test": (train + test, train + 2 * test)}
    kept = {name: (place_n >= first) & (place_n < end) for name, (first, end) in bounds.items()}
    return splits | {name: (user_n[here], item_n[here]) for name, here in kept.items()}


def write(dataset: Dataset, dst: Path, splits: dict[str, Pairs], order_I: np.ndarray, made: dict[str, Any]) -> None:
    """A data set with these splits, in which item i has the features of item order_I[i]; made: how."""
    with Writer(dst) as out:
        for name in dataset.modalities:
            out.features(name, dataset.features(name)[order_I], dataset.present(name)[order_I])
        out.interactions(dataset.n_users, dataset.n_items, splits)
        out.finish(dataset.user_ids, dataset.item_ids, provenance={"control": {"of": dataset.fingerprint, **made}})


@click.group()
def main() -> None:
    pass


@main.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--train", default=6, help="Training interactions of a user.")
@click.option("--test", default=0, help="Validation and test interactions of a user, of each; 0: as they are.")
@click.option("--seed", default=0)
def sparse(src: Path, dst: Path, train: int, test: int, seed: int) -> None:
    dataset = Dataset.open(src)
    splits = thinned({name: dataset.interactions(name) for name in SPLITS}, train, test, seed)
    write(dataset, dst, splits, np.arange(dataset.n_items), {"train": train, "test": test, "seed": seed})
    click.echo({name: len(pair[0]) for name, pair in splits.items()})


@main.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--seed", default=0)
def shuffled(src: Path, dst: Path, seed: int) -> None:
    dataset = Dataset.open(src)
    order_I = np.random.default_rng(seed).permutation(dataset.n_items)
    write(dataset, dst, {name: dataset.interactions(name) for name in SPLITS}, order_I, {"shuffled": seed})


if __name__ == "__main__":
    main()
