"""Copies of a data set that controls train on."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from benchmarks.controls import main
from benchmarks.sizes import Size, made
from m3dist.data.dataset import Dataset

SIZE = Size(users=30, items=25, pairs=300, widths=(3, 2))


def pairs(dataset: Dataset, split: str) -> set[tuple[int, int]]:
    return set(zip(*(x.tolist() for x in dataset.interactions(split)), strict=True))


def copied(tmp_path: Path, *arguments: str) -> tuple[Dataset, Dataset]:
    before = made(SIZE, tmp_path / "data")
    command, *rest = arguments
    done = CliRunner().invoke(main, [command, str(before.root), str(tmp_path / "copy"), *rest], catch_exceptions=False)
    assert done.exit_code == 0
    return before, Dataset.open(tmp_path / "copy")


def test_a_sparse_copy_keeps_some_training_interactions_of_every_user(tmp_path: Path) -> None:
    before, after = copied(tmp_path, "sparse", "--train", "4")
    had, has = (np.bincount(x.interactions("train")[0], minlength=30) for x in (before, after))
    assert has.tolist() == np.minimum(had, 4).tolist()
    assert had.max() > 4
    assert pairs(after, "train") < pairs(before, "train")
    for split in ("val", "test"):
        assert pairs(after, split) == pairs(before, split)
    assert np.array_equal(after.features("modality0"), before.features("modality0"))


def test_validation_and_test_are_drawn_anew(tmp_path: Path) -> None:
    before, after = copied(tmp_path, "sparse", "--train", "3", "--test", "2")
    every = [pair for split in ("train", "val", "test") for pair in pairs(after, split)]
    assert len(every) == len(set(every))
    assert set(every) < set().union(*(pairs(before, split) for split in ("train", "val", "test")))
    for split, most in (("train", 3), ("val", 2), ("test", 2)):
        assert np.bincount(after.interactions(split)[0]).max() == most


def test_a_shuffled_copy_gives_every_item_the_features_of_one_other(tmp_path: Path) -> None:
    before, after = copied(tmp_path, "shuffled")
    where = [np.flatnonzero((before.features("modality0") == row).all(1)).item() for row in after.features("modality0")]
    assert sorted(where) == list(range(25)) != where
    assert np.array_equal(after.features("modality1"), before.features("modality1")[where])
    for split in ("train", "val", "test"):
        assert pairs(after, split) == pairs(before, split)
