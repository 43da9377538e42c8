"""Ids, ratings, labels and bad rows: the same from text, Parquet and Arrow, and nothing left out without a word."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import everything

from m3dist.data.dataset import DataError
from m3dist.data.importers import tables

SPLIT = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
USERS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
ITEMS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def parquet(folder: Path, item: Any, user: Any = USERS) -> Path:
    pq.write_table(pa.table({"user_id": user, "item_id": item, "split": SPLIT[: len(item)]}), folder / "a.parquet")
    return folder / "a.parquet"


def text(folder: Path, item: list[Any], user: list[Any] = USERS, name: str = "a.csv") -> Path:
    rows = "".join(f"{u},{i},{s}\n" for u, i, s in zip(user, item, SPLIT, strict=True))
    (folder / name).write_text("user_id,item_id,split\n" + rows)
    return folder / name


ARROW = {
    "int8": pa.array(ITEMS, pa.int8()),
    "uint16": pa.array(ITEMS, pa.uint16()),
    "int32": pa.array(ITEMS, pa.int32()),
    "uint64": pa.array(ITEMS, pa.uint64()),
    "float": pa.array([float(i) for i in ITEMS]),
    "float16": pa.array(np.array(ITEMS, np.float16)),
    "decimal": pa.array([decimal.Decimal(i).quantize(decimal.Decimal("1.00")) for i in ITEMS]),
    "string": pa.array([str(i) for i in ITEMS]),
    "large string": pa.array([str(i) for i in ITEMS], pa.large_string()),
    "string view": pa.array([str(i) for i in ITEMS], pa.string_view()),
    "binary": pa.array([str(i).encode() for i in ITEMS]),
    "dictionary": pa.array([str(i) for i in ITEMS]).dictionary_encode(),
    "dictionary of integers": pa.array(ITEMS).dictionary_encode(),
    "categorical": pa.array(pd.Categorical(ITEMS)),
    "nullable": pa.array(pd.array(ITEMS, dtype="Int64")),
    "whole floats as text": pa.array([f"{i}.0" for i in ITEMS]),
    "some of them": pa.array([f"{i}.0" if i % 2 else str(i) for i in ITEMS]),
}


@pytest.mark.parametrize("kind", ARROW)
def test_integers_of_every_type_are_the_same_ids(tmp_path: Path, kind: str) -> None:
    source = tables.read(parquet(tmp_path, ARROW[kind]))
    assert source.item_ids.to_pylist() == ITEMS
    assert everything(source) == everything(tables.read(text(tmp_path, ITEMS)))


@pytest.mark.parametrize(
    "ids",
    [
        [str(i) if i != 7 else "B7" for i in ITEMS],
        [f"{i:03}" for i in ITEMS],
        [f"é{i}" for i in ITEMS],
        [2**64 - 1 - i for i in ITEMS],
        [2**63 - 5 + i for i in ITEMS],
        [-(2**63) + i for i in ITEMS],
        [-i for i in ITEMS],
        [10**25 + i for i in ITEMS],
        ["1.5.2", "2", "3", "4", "5", "6", "7", "8", "9", "10"],
    ],
)
def test_text_json_and_parquet_agree(tmp_path: Path, ids: list[Any]) -> None:
    found = [tables.read(text(tmp_path, ids))]
    rows = [{"user_id": u, "item_id": i, "split": s} for u, i, s in zip(USERS, ids, SPLIT, strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found.append(tables.read(tmp_path / "a.jsonl"))
    huge = isinstance(ids[0], int) and max(ids) >= 2**64
    unsigned = isinstance(ids[0], int) and max(ids) >= 2**63 and not huge
    typed = pa.array(list(map(str, ids)) if huge else ids, pa.uint64() if unsigned else None)
    found.append(tables.read(parquet(tmp_path, typed)))
    assert found[0].item_ids.to_pylist() == found[1].item_ids.to_pylist() == found[2].item_ids.to_pylist()
    assert everything(found[0]) == everything(found[1]) == everything(found[2])
    assert len(everything(found[0])) == 10


def test_ids_are_decided_over_all_files(tmp_path: Path) -> None:
    """A text id in the last file makes all ids text; floats in one file and integers in another are the same ids."""
    for split, rows in {"train": ["0,3", "1,4"], "val": ["0,4.0", "1,3.0"], "test": ["0,B5", "1,B6"]}.items():
        (tmp_path / f"{split}.csv").write_text("user,item\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"item ids '3' and '3.0' both occur, .*\(test.csv, line 2: item id 'B5'\)"):
        tables.read(tmp_path)
    assert tables.read(tmp_path, ids="text").item_ids.to_pylist() == ["3", "3.0", "4", "4.0", "B5", "B6"]
    (tmp_path / "test.csv").write_text("user,item\n0,5\n1,6.00\n")
    source = tables.read(tmp_path)
    assert source.item_ids.to_pylist() == [3, 4, 5, 6]
    assert "val.csv, line 2: item id 4.0 and others like it were taken as integers" in source.notes


def test_one_odd_id_is_never_taken_without_a_word(tmp_path: Path) -> None:
    path = text(tmp_path, [*ITEMS[:7], "B7", *ITEMS[8:]])
    notes = tables.read(path).notes
    assert any(
        "item ids are text, though 9 of 10 are integers: a.csv, line 9: item id 'B7' is none" in n for n in notes
    )
    with pytest.raises(DataError, match=r"a.csv, line 9: item id 'B7' is not an integer \(--ids integers\)"):
        tables.read(path, ids="integers")
    source = tables.read(path, ids="integers", on_bad_row="drop")
    assert len(everything(source)) == 9
    assert "left out 1 rows: item id is not an integer (the first: a.csv, line 9)" in source.notes


MISSING = ["", " ", "NULL", "null", "nan", "NaN", "None", "NA", "N/A", "<NA>", "\\N", "NaT"]


@pytest.mark.parametrize("word", MISSING)
@pytest.mark.parametrize("ids", ["integers", "text"])
def test_missing_ids_are_refused_or_counted(tmp_path: Path, word: str, ids: str) -> None:
    items = [f"b{i}" for i in ITEMS] if ids == "text" else list(ITEMS)
    path = text(tmp_path, [*items[:4], word, *items[5:]])
    with pytest.raises(DataError, match=r"a.csv, line 6: the item id is .*missing.*--on-bad-row drop"):
        tables.read(path)
    source = tables.read(path, on_bad_row="drop")
    assert len(everything(source)) == 9
    assert source.item_ids.to_pylist() == sorted([*items[:4], *items[5:]])
    assert "left out 1 rows: missing item id (the first: a.csv, line 6)" in source.notes
    if word.strip():
        assert word in tables.read(path, ids="text").item_ids.to_pylist()


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_nulls_of_every_type(tmp_path: Path, kind: pa.DataType) -> None:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    values = pa.array([*ITEMS[:4], None, *ITEMS[5:]]).cast(plain)
    path = parquet(tmp_path, values.dictionary_encode() if plain is not kind else values)
    with pytest.raises(DataError, match=r"a.parquet, row 4: the item id is missing"):
        tables.read(path)
    source = tables.read(path, on_bad_row="drop")
    assert source.item_ids.to_pylist() == [3, 4, 5, 6, 8, 9, 10, 11, 12]


BAD_IDS = {
    "fraction": ([*map(float, ITEMS[:9]), 2.5], r"row 9: item id 2.5 is not an integer"),
    "infinite": ([*map(float, ITEMS[:9]), np.inf], r"row 9: item id inf is a float beyond"),
    "lost digits": ([*map(float, ITEMS[:9]), 2.0**60], r"row 9: .*lost digits"),
    "booleans": ([True] * 10, r"item ids must be integers or strings, got bool"),
    "lists": ([[1]] * 10, r"item id must be one value a row, got list"),
    "dates": (
        pa.array([0] * 10, pa.date32()),
        r"got date32",
    ),
    "bytes": (pa.array([b"\xff"] * 10), r"binary and not UTF-8"),
}


@pytest.mark.parametrize("kind", BAD_IDS)
def test_what_is_no_id(tmp_path: Path, kind: str) -> None:
    values, message = BAD_IDS[kind]
    with pytest.raises(DataError, match=message):
        tables.read(parquet(tmp_path, values))


def test_fractions_in_text_are_no_ids_either(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.csv, line 4: item id '2.5' is a number but no integer.*--ids text"):
        tables.read(text(tmp_path, [1, 2, 2.5, *ITEMS[3:]]))


RATED = "user_id,item_id,rating,split\n" + "".join(
    f"{u},{i},{{}},{s}\n" for u, i, s in zip(USERS, ITEMS, SPLIT, strict=True)
)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "the rating is missing"),
        ("nan", "rating is NaN, expected a number"),
        ("NaN", "rating is NaN, expected a number"),
        ("good", "rating 'good' is not a number"),
        ("4,5", None),
        ("inf", "rating 'inf' is not a number"),
    ],
)
def test_bad_ratings(tmp_path: Path, value: str, message: str | None) -> None:
    values = ["5", " 4 ", "4.5", value, "3e0", "5", "5", "5", "5", "5"]
    (tmp_path / "a.csv").write_text(RATED.format(*values))
    if message is None:
        message = "5 cells, expected 4"
    with pytest.raises(DataError, match=rf"a.csv, line 5: {message}"):
        tables.read(tmp_path / "a.csv", threshold=2)
    source = tables.read(tmp_path / "a.csv", threshold=2, on_bad_row="drop")
    assert source.item_ids.to_pylist() == [3, 4, 5, 7, 8, 9, 10, 11, 12]


def test_all_reasons_are_counted(tmp_path: Path) -> None:
    """Rows that are bad in several ways count once; what is dropped never becomes an id."""
    rows = [f"{u},{i},4,{s}" for u, i, s in zip(USERS, ITEMS, SPLIT, strict=True)]
    rows[3:3] = ["user_id,item_id,rating,split", ",77,4,train", "88,,4,train", "99,99,bad,train", "66,66,4,maybe", "55"]
    rows += ["NULL,,x,y"]
    (tmp_path / "a.csv").write_text("user_id,item_id,rating,split\n" + "\n".join(rows) + "\n")
    source = tables.read(tmp_path / "a.csv", threshold=1, on_bad_row="drop")
    assert source.item_ids.to_pylist() == ITEMS
    assert source.user_ids.to_pylist() == [0, 1, 2]
    said = "\n".join(source.notes)
    for reason in (
        "1 rows: looks like a header (the first: a.csv, line 5)",
        "1 rows: missing user id (the first: a.csv, line 6)",
        "1 rows: missing item id (the first: a.csv, line 7)",
        "2 rows: rating is not a number (the first: a.csv, line 8)",
        "1 rows: unknown split (the first: a.csv, line 9)",
        "1 rows: another number of cells (the first: a.csv, line 10)",
    ):
        assert f"left out {reason}" in said


def test_items_that_are_not_in_the_items_table_can_be_dropped(tmp_path: Path) -> None:
    path = text(tmp_path, ITEMS)
    (tmp_path / "items.csv").write_text("id\n" + "\n".join(map(str, ITEMS[:-1])) + "\n")
    with pytest.raises(DataError, match=r"a.csv, line 11: item id 12 is not among the 9 ids of items.csv"):
        tables.read(path, items=tmp_path / "items.csv")
    source = tables.read(path, items=tmp_path / "items.csv", on_bad_row="drop")
    assert (source.n_items, len(everything(source))) == (9, 9)


@pytest.mark.parametrize(
    "labels", [["0", "1", "2"], ["0.0", "1.0", "2.0"], ["Train", "VALID", " test "], [0.0, 1.0, 2.0]]
)
def test_labels(tmp_path: Path, labels: list[Any]) -> None:
    column = [labels[k % 3] for k in range(10)]
    pq.write_table(pa.table({"user": USERS, "item": ITEMS, "x_label": column}), tmp_path / "a.parquet")
    rows = "".join(f"{u},{i},{s}\n" for u, i, s in zip(USERS, ITEMS, column, strict=True))
    (tmp_path / "a.csv").write_text("user,item,x_label\n" + rows)
    for name in ("a.parquet", "a.csv"):
        source = tables.read(tmp_path / name)
        assert [len(source.splits[s][0]) for s in ("train", "val", "test")] == [4, 3, 3]


def test_text_of_parquet_that_is_no_text(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"user": USERS, "item": [f"item {i}" for i in ITEMS], "split": SPLIT}),
        tmp_path / "a.parquet",
        compression="none",
    )
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"item 7", b"item\xff7"))
    with pytest.raises(DataError, match=r"a.parquet: cannot read it as a table: .*UTF8"):
        tables.read(tmp_path / "a.parquet")
