"""Fixtures of the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_helpers import FEATURES, SMALL, text

from m3dist.data.dataset import DataError, Dataset
from m3dist.data.importers.common import Source, write


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Dataset]:
    """Write a source and open the result; checks that a refusal leaves nothing behind."""

    def prepare(source: Source, overlap: str = "error") -> Dataset:
        dst = tmp_path / "out" / "dst"
        try:
            write(source, dst, overlap)
        except DataError:
            assert not dst.exists()
            assert not list(dst.parent.glob("*"))
            assert not list(dst.parent.glob(".*"))
            raise
        return Dataset(dst)

    return prepare


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tables folder: three splits, features, flags, items with titles."""
    src = tmp_path / "src"
    src.mkdir()
    for split, rows in SMALL.items():
        (src / f"{split}.tsv").write_text(text(rows))
    np.save(src / "visual_small.npy", FEATURES)
    np.save(src / "has_visual.npy", np.array([True, True, False, True]))
    (src / "items.tsv").write_text("itemID\ttitle\tyear\n0\tZero\t1\n1\tOne\t2\n2\tTwo\t3\n3\tThree\t4\n")
    return src
