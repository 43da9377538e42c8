"""Data sets from tables and arrays in memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cli_helpers import call

import m3dist
from m3dist import Dataset, Options

pd = pytest.importorskip("pandas", reason="pandas is not installed")
USERS, ITEMS = 12, 9
RNG = np.random.default_rng(3)
NAMES = [f"film{i}" for i in RNG.permutation(ITEMS)]
VISUAL = RNG.standard_normal((ITEMS, 3)).astype(np.float32)
TEXT = RNG.standard_normal((ITEMS - 2, 2)).astype(np.float32)  # of all but the last two
ROWS: dict[str, Any] = {
    "user": [f"u{u}" for u in range(USERS) for _ in range(ITEMS)],
    "item": [NAMES[i] for _ in range(USERS) for i in range(ITEMS)],
    "rating": RNG.integers(1, 6, USERS * ITEMS),
    "time": RNG.permutation(USERS * ITEMS) + 1_400_000_000,
}
WAYS = {
    "random": {"split": "random", "seed": 7, "ratios": (0.6, 0.2, 0.2)},
    "leave last out": {"split": "leave-last-out", "threshold": 2.0},
    "temporal": {"split": "temporal", "test_from": "1400000090"},
    "cold": {"split": "random", "cold": 0.5, "seed": 1, "at_least_one": True},
    "core": {"split": "random", "threshold": 3.0, "min_user": 4, "min_item": 4, "at_least_one": True},
}


def prepared(folder: Path, **options: Any) -> Dataset:
    """The same content through files and the command line."""
    folder.mkdir()
    pd.DataFrame(ROWS).to_csv(folder / "interactions.csv", index=False)
    (folder / "items.csv").write_text("".join(f"{line}\n" for line in ["item_id", *NAMES]))
    np.save(folder / "visual.npy", VISUAL)
    text = pd.DataFrame(TEXT, columns=["f0", "f1"])
    text.insert(0, "item_id", NAMES[: len(TEXT)])
    text.to_parquet(folder / "text.parquet", index=False)
    given: list[Any] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        given += [flag] if value is True else [flag, *value] if isinstance(value, tuple) else [flag, value]
    files = [f"--feature={name}={folder}/{file}" for name, file in (("visual", "visual.npy"), ("text", "text.parquet"))]
    assert call("prepare", "tables", folder, folder / "out", *files, *given) == 0
    return Dataset.open(folder / "out")


def in_memory(kind: str, out: Path, options: Options) -> Dataset:
    columns = {"item_id": NAMES[: len(TEXT)], "vector": TEXT}
    if kind == "arrays":
        return Dataset.from_arrays(ROWS, {"visual": VISUAL, "text": columns}, out, options, NAMES)
    frame = pd.DataFrame(ROWS)
    text = pd.DataFrame(TEXT, columns=["f0", "f1"], index=pd.Index(columns["item_id"], name="item_id"))
    if kind == "pandas":
        return Dataset.from_pandas(frame, {"visual": VISUAL, "text": text}, out, options, NAMES)
    vectors = pa.table({"id": columns["item_id"], "vector": list(TEXT)})
    return Dataset.from_arrow(pa.Table.from_pandas(frame), {"visual": VISUAL, "text": vectors}, out, options, NAMES)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_content_is_the_same_data_set(way: str, tmp_path: Path) -> None:
    told = prepared(tmp_path / "files", **WAYS[way])
    for kind in ("arrow", "pandas", "arrays"):
        made = in_memory(kind, tmp_path / kind, Options.of(**WAYS[way]))
        assert made.fingerprint == told.fingerprint, kind
        assert made.user_ids.to_pylist() == told.user_ids.to_pylist()
        assert made.item_ids.to_pylist() == told.item_ids.to_pylist()
        assert made.present("text").tolist() == told.present("text").tolist()
        made.verify()


def test_a_column_says_the_split_and_ids_are_integers(tmp_path: Path) -> None:
    rows = {"user": [0, 0, 1, 1], "item": [2, 0, 1, 2], "split": ["train", "val", "train", "test"]}
    made = Dataset.from_arrays(rows, {"x": np.eye(3, dtype=np.float16)}, tmp_path / "out")
    assert {s: [x.tolist() for x in made.interactions(s)] for s in ("train", "val", "test")} == {
        "train": [[0, 1], [2, 1]],
        "val": [[0], [0]],
        "test": [[1], [2]],
    }
    assert made.features("x").dtype == np.float16
    assert made.features("x").tolist() == np.eye(3).tolist()
    without = Dataset.from_pandas(pd.DataFrame(rows), None, tmp_path / "without")
    assert (without.modalities, without.n_items) == ({}, 3)


def test_integers_beside_text_are_text(tmp_path: Path) -> None:
    rows = {"user": [1, "ann", 1, "ann"], "item": [5, 6, 7, 5], "split": ["train", "train", "val", "test"]}
    for made in (
        Dataset.from_arrays(rows, None, tmp_path / "arrays"),
        Dataset.from_pandas(pd.DataFrame(rows), None, tmp_path / "pandas"),
    ):
        assert made.user_ids.to_pylist() == ["1", "ann"]
        assert made.item_ids.to_pylist() == [5, 6, 7]


GOOD = {"user": [0, 0, 1, 1], "item": [2, 0, 1, 2], "split": ["train", "val", "train", "test"]}
BAD: dict[str, tuple[dict[str, Any], Any, dict[str, Any], str]] = {
    "no split": ({"user": [1], "item": [1]}, None, {}, "choose split random"),
    "no user column": ({"who": [1], "item": [1]}, None, {"split": "random"}, "no user column among who"),
    "lengths": ({"user": [1, 2], "item": [1]}, None, {}, "interactions: cannot be read as a table"),
    "times": ({"user": [1], "item": [1]}, None, {"split": "temporal"}, "no time column"),
    "odd split": ({**GOOD, "split": ["train", "val", "train", "tset"]}, None, {}, "interactions, row 3: split 'tset'"),
    "missing id": ({**GOOD, "user": [0, None, 1, 1]}, None, {}, "interactions, row 1: the user id is missing"),
    "nested ids": ({**GOOD, "item": [(1, 2)] * 4}, None, {}, "the item id must be one value a row"),
    "ratios": (GOOD, None, {"split": "random", "ratios": (1, 1, 1)}, "split ratios"),
    "strategy": (GOOD, None, {"split": "sorted"}, "split strategy 'sorted'"),
    "overlap": ({**GOOD, "item": [2, 2, 1, 2]}, None, {}, "overlap drop keeps it"),
    "overlap value": (GOOD, None, {"overlap": "keep"}, "overlap keep"),
    "rows": (GOOD, {"x": np.ones((1, 2))}, {}, "item id 2 is out of range 0..0"),
    "text features": (GOOD, {"x": np.array([["a"]] * 3)}, {}, "x: features must be numbers"),
    "flat features": (GOOD, {"x": np.ones(3)}, {}, "x: expected"),
    "ragged features": (GOOD, {"x": [[1.0], [1.0, 2.0]]}, {}, "x: expected"),
    "no features": (GOOD, {"x": 3}, {}, "x: expected {column: array}"),
    "name": (GOOD, {"../x": np.ones((3, 2))}, {}, "modality name '../x'"),
    "a list": (GOOD, [np.ones((3, 2))], {}, "features: expected"),
    "files": (GOOD, None, {"encoding": "latin-1"}, "options: text, files"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    rows, features, options, said = BAD[case]
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Dataset.from_arrays(rows, features, tmp_path / "out", Options.of(**options))
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_items_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="item id 2 is not among the 2 ids of items"):
        Dataset.from_arrays(GOOD, {"x": np.ones((2, 2))}, tmp_path / "out", items=[0, 1])
    with pytest.raises(ValueError, match="items: expected the ids"):
        Dataset.from_arrays(GOOD, None, tmp_path / "out", items="abc")
    for wrong in (ROWS, [1]):
        with pytest.raises(ValueError, match="interactions: expected a pandas DataFrame"):
            Dataset.from_pandas(wrong, None, tmp_path / "out")


def test_it_trains(tmp_path: Path) -> None:
    data = in_memory("pandas", tmp_path / "data", Options.of(split="random", at_least_one=True))
    config = m3dist.Config(
        out=str(tmp_path / "run"), model="ultragcn", backbone={"loss": "softmax"}, merge={"epochs": 1}
    )
    top = m3dist.train(data, config, quiet=True).recommend(["u3"], k=1, rules=m3dist.Rules(include_seen=True))
    assert top["user"].to_pylist() == ["u3"]
    assert top["item"][0].as_py() in NAMES
