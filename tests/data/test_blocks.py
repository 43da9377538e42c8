"""What a data set says of its columns and of rows of zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m3dist.data.blocks import ColumnStatistics
from m3dist.data.dataset import DataError, Dataset
from m3dist.data.writer import Writer

PAIR = np.zeros(1, np.int32)
SPLITS = {"train": (PAIR, PAIR), "val": (PAIR, PAIR + 1), "test": (PAIR, PAIR + 2)}
RNG = np.random.default_rng(0)


def build(dst: Path, features: np.ndarray, present: np.ndarray | None = None, zero_rows: str = "keep") -> dict:
    with Writer(dst) as out:
        out.features("visual", (features[k : k + 3] for k in range(0, len(features), 3)), present, "v.npy", zero_rows)
        out.interactions(1, len(features), SPLITS)
        return out.finish()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_constant_and_duplicate_columns_are_counted(tmp_path: Path, dtype: type) -> None:
    x = RNG.standard_normal((10, 6)).astype(dtype)
    x[:, 1], x[:, 2], x[:, 4], x[:, 5] = 0.1, 7, x[:, 0], x[:, 0]
    assert build(tmp_path / "d", x)["columns"]["visual"] == {"constant": 2, "duplicate": 2, "zero_rows": 0}


def test_items_that_lack_the_modality_do_not_count(tmp_path: Path) -> None:
    x, present = RNG.standard_normal((10, 3)).astype(np.float32), np.arange(10) != 4
    x[:, 1] = 5  # constant where it is present: the writer zeroes the other row
    assert build(tmp_path / "d", x, present)["columns"]["visual"]["constant"] == 1


def test_columns_that_differ_in_one_row_are_no_duplicates() -> None:
    x = np.repeat(RNG.standard_normal((9000, 1)).astype(np.float32), 50, axis=1)
    x[np.arange(50) * 180, np.arange(50)] += 1
    statistics = ColumnStatistics(50)
    for part in np.array_split(x, 7):
        statistics.add(part)
    assert statistics.counts() == {"constant": 0, "duplicate": 0}


def test_rows_of_zeros(tmp_path: Path) -> None:
    x = RNG.standard_normal((7, 3)).astype(np.float32)
    x[[2, 5]] = 0
    kept = build(tmp_path / "kept", x)
    assert kept["columns"]["visual"]["zero_rows"] == 2
    assert Dataset(tmp_path / "kept").present("visual").all()
    taken = build(tmp_path / "missing", x, np.arange(7) != 6, "missing")
    assert Dataset(tmp_path / "missing").present("visual").tolist() == [True, True, False, True, True, False, False]
    assert (taken["lacking"], taken["fingerprint"] == kept["fingerprint"]) == ({"visual": 3}, False)
    with pytest.raises(DataError, match=r"v.npy: row 2 holds zeros only .*--zero-rows missing"):
        build(tmp_path / "error", x, zero_rows="error")
    with pytest.raises(DataError, match=r"v.npy: no item has the modality"):
        build(tmp_path / "none", x * 0, zero_rows="missing")
