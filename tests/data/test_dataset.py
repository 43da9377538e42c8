"""The canonical data set: what Writer stores, what it refuses, and that nothing half-written stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_helpers import FEATURES, SMALL, pairs, sorted_pairs

from m3dist.data.dataset import DataError, Dataset
from m3dist.data.writer import Origin, Writer


def arrays(rows):
    return np.array([u for u, _ in rows]), np.array([i for _, i in rows])


SPLIT_ARRAYS = {split: arrays(rows) for split, rows in SMALL.items()}


def build(dst: Path, features=FEATURES, present=None, splits=None, **more):
    with Writer(dst) as out:
        out.features("visual", features, present)
        out.interactions(3, 4, splits or SPLIT_ARRAYS, **more)
        return out.finish()


def test_what_goes_in_comes_out(tmp_path):
    meta = build(tmp_path / "d", present=np.array([1, 1, 0, 1]))
    data = Dataset(tmp_path / "d")
    assert pairs(data) == sorted_pairs(SMALL)
    expected = FEATURES.copy()
    expected[2] = 0
    np.testing.assert_array_equal(data.features("visual"), expected)
    assert data.present("visual").tolist() == [True, True, False, True]
    assert meta["cold_items"] == {"all": 1, "val": 1, "test": 0}
    assert meta["sparsity"] == 1 - 8 / 12
    assert meta["lacking"] == {"visual": 1}
    assert data.user_ids.to_pylist() == [0, 1, 2]
    assert [x.tolist() for x in data.degrees] == [[2, 1, 1], [1, 2, 1, 0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_streamed_blocks_equal_one_array(tmp_path, dtype):
    """Blocks of any size give the file that numpy itself would write."""
    features = np.random.default_rng(0).standard_normal((4, 7)).astype(dtype)
    one = build(tmp_path / "a", features)
    many = build(tmp_path / "b", (block for block in (features[:1], features[1:1], features[1:])))
    np.save(tmp_path / "plain.npy", features)
    written = (tmp_path / "b/features/visual.npy").read_bytes()
    assert written == (tmp_path / "a/features/visual.npy").read_bytes()
    assert written == (tmp_path / "plain.npy").read_bytes()
    assert one["fingerprint"] == many["fingerprint"]


def test_fingerprint_sees_every_part(tmp_path):
    changed = FEATURES.copy()
    changed[3, 1] += 1
    prints = [
        build(tmp_path / "a")["fingerprint"],
        build(tmp_path / "b", changed)["fingerprint"],
        build(tmp_path / "c", present=np.array([True, True, True, False]))["fingerprint"],
        build(tmp_path / "d", splits={**SPLIT_ARRAYS, "test": arrays([(2, 0), (1, 2)])})["fingerprint"],
    ]
    assert len(set(prints)) == 4
    assert build(tmp_path / "e")["fingerprint"] == prints[0]


def test_duplicates_are_counted_and_dropped(tmp_path):
    meta = build(tmp_path / "d", splits={**SPLIT_ARRAYS, "train": arrays([*SMALL["train"], (0, 0), (0, 0)])})
    assert meta["duplicates_dropped"] == {"train": 2, "val": 0, "test": 0}
    assert meta["interactions"]["train"] == 4


def test_overlap_is_refused_or_dropped(tmp_path):
    splits = {
        "train": arrays(SMALL["train"]),
        "val": arrays([(0, 0), (0, 2)]),  # (0, 0) stands in train
        "test": arrays([(0, 2), (1, 1), (2, 0)]),  # (0, 2) stands in val, (1, 1) in train
    }
    with pytest.raises(DataError, match=r"train and val overlap in 1 interactions, the first is user 'a', item 'x'"):
        build(tmp_path / "d", splits=splits, origin=Origin({}, ["a", "b", "c"], list("xyzw")))
    assert not list(tmp_path.iterdir())
    meta = build(tmp_path / "d", splits=splits, overlap="drop")
    assert meta["overlaps_dropped"] == {"train": 0, "val": 1, "test": 2}
    assert pairs(Dataset(tmp_path / "d")) == {"train": sorted(SMALL["train"]), "val": [(0, 2)], "test": [(2, 0)]}
    with pytest.raises(DataError, match=r"test is empty once the pairs that stand in train are dropped"):
        build(tmp_path / "e", splits={**splits, "test": arrays([(1, 1)])}, overlap="drop")


NAN = FEATURES.copy()
NAN[2, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": FEATURES[:3]}, r"visual: 3 feature rows of 'visual' for 4 items"),
        ({"features": NAN}, r"visual: row 2 holds NaN or infinity"),
        ({"features": FEATURES.astype(np.float64) * 1e40}, r"row 0 holds NaN or infinity as float32"),
        ({"features": FEATURES[:, 0]}, r"expected \[items, width\]"),
        ({"features": FEATURES.astype(str)}, r"must be numbers"),
        ({"features": [FEATURES[:2], FEATURES[2:, :1]]}, r"row 2 has 1 values, the rows before it 2"),
        ({"features": FEATURES[:0]}, r"no feature rows"),
        ({"present": np.ones(3, dtype=bool)}, r"more feature rows than the 3 flags"),
        ({"present": np.ones(5, dtype=bool)}, r"4 feature rows and 5 flags"),
        ({"present": np.array([0, 1, 2, 1])}, r"one boolean per item"),
        ({"splits": {**SPLIT_ARRAYS, "val": arrays([])}}, r"split 'val': val is empty"),
        ({"splits": {**SPLIT_ARRAYS, "val": arrays([(0, 3), (0, 4)])}}, r"interaction 1 of val has item id 4, .* 0..3"),
        ({"splits": {**SPLIT_ARRAYS, "val": arrays([(-1, 3)])}}, r"interaction 0 of val has user id -1"),
    ],
)
def test_refusals(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        build(tmp_path / "d", **change)
    assert not list(tmp_path.iterdir())  # no data set and no partial folder


def test_ids_beyond_int32(tmp_path):
    with Writer(tmp_path / "d") as out, pytest.raises(DataError, match="user ids must be dense"):
        out.interactions(1 << 31, 4, SPLIT_ARRAYS)


def test_nan_may_stand_where_an_item_lacks_the_modality(tmp_path):
    build(tmp_path / "d", NAN, present=np.array([True, True, False, True]))
    assert Dataset(tmp_path / "d").features("visual")[2].tolist() == [0, 0]


def test_destination(tmp_path):
    dst = tmp_path / "d"
    dst.mkdir()
    build(dst)  # an empty folder is fine
    build(dst, FEATURES + 1)  # and so is an earlier data set, which is replaced
    assert Dataset(dst).features("visual")[0, 0] == 1
    with pytest.raises(DataError, match="NaN"):
        build(dst, NAN)
    assert Dataset(dst).features("visual")[0, 0] == 1  # a refusal leaves the old one
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not a prepared data set"):
        build(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").exists()


def test_opening_what_is_not_a_data_set(tmp_path):
    with pytest.raises(DataError, match="m3dist prepare"):
        Dataset(tmp_path)
    build(tmp_path / "d")
    with pytest.raises(DataError, match="no modality 'sound'; it has visual"):
        Dataset(tmp_path / "d").features("sound")
    with pytest.raises(DataError, match="no split 'dev'"):
        Dataset(tmp_path / "d").interactions("dev")
    meta = tmp_path / "d/dataset.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99"):
        Dataset(tmp_path / "d")
    for damaged in ("{", "[1]", "\x00"):
        meta.write_text(damaged)
        with pytest.raises(DataError, match="damaged"):
            Dataset(tmp_path / "d")
