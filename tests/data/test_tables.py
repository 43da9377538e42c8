"""The tables importer: what it recognises, how ids become dense, and every refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import FEATURES, SMALL, pairs, sorted_pairs, text

from m3dist.data.dataset import DataError, Dataset
from m3dist.data.importers import arrows, tables
from m3dist.data.importers.options import Options, Text

ALL = [(u, i, split) for split, rows in SMALL.items() for u, i in rows]


def test_folder(folder, prepared):
    data = prepared(tables.read(folder, Options.of()))
    assert pairs(data) == sorted_pairs(SMALL)
    assert data.modalities == {"visual": 2}
    assert data.present("visual").tolist() == [True, True, False, True]
    items = pq.read_table(data.root / "items.parquet").to_pydict()
    assert items == {"id": [0, 1, 2, 3], "title": ["Zero", "One", "Two", "Three"]}
    assert data.meta["provenance"]["files"]["visual"] == "visual_small.npy"
    assert str(folder.parent) not in (data.root / "dataset.json").read_text()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", "/"])
@pytest.mark.parametrize("label", ["name", "number"])
def test_one_file_with_a_split_column(tmp_path, prepared, suffix, label):
    labels = (
        {"train": 0, "val": 1, "test": 2} if label == "number" else {"train": "train", "val": "Valid", "test": "test"}
    )
    rows = [(u, i, labels[s]) for u, i, s in ALL]
    path = tmp_path / f"all{'.parquet' if suffix == '/' else suffix}"
    names = ["user_id", "item_id", "x_label" if label == "number" else "split"]
    if suffix in (".csv", ".tsv"):
        sep = "," if suffix == ".csv" else "\t"
        path.write_text(text(rows, sep.join(names), sep))
    else:
        table = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
        if suffix == "/":
            path.mkdir()
            pq.write_table(table.slice(0, 3), path / "part-0.parquet")
            pq.write_table(table.slice(3), path / "part-1.parquet")
        else:
            pq.write_table(table.set_column(2, names[2], table[names[2]].dictionary_encode()), path)
    assert pairs(prepared(tables.read(path, Options.of()))) == sorted_pairs(SMALL)


def test_many_batches(tmp_path, prepared, monkeypatch):
    """A Parquet file in batches of three rows gives what one batch gives."""
    pq.write_table(
        pa.table(dict(zip(["user", "item", "split"], zip(*ALL, strict=True), strict=True))), tmp_path / "a.parquet"
    )
    monkeypatch.setattr(arrows, "ROWS", 3)
    assert pairs(prepared(tables.read(tmp_path / "a.parquet", Options.of()))) == sorted_pairs(SMALL)


def test_string_ids(tmp_path, prepared):
    rows = [(f"u{u}", f"00{i}", s) for u, i, s in ALL]  # 007 is not the number 7
    (tmp_path / "a.csv").write_text(text(rows, "user,item,split", ","))
    data = prepared(tables.read(tmp_path / "a.csv", Options.of()))
    assert data.user_ids.to_pylist() == ["u0", "u1", "u2"]
    assert data.item_ids.to_pylist() == ["000", "001", "002", "003"]
    assert pairs(data) == sorted_pairs(SMALL)


def test_an_id_that_is_no_integer_in_a_late_batch_makes_all_strings(tmp_path, prepared, monkeypatch):
    rows = [(u, f"B{i}" if (u, i) == (1, 0) else 10 + i, s) for u, i, s in ALL]  # the last row
    assert rows[-1][1] == "B0"
    (tmp_path / "a.csv").write_text(text(rows, "user,item,split", ","))
    data = prepared(tables.read(tmp_path / "a.csv", Options.of()))
    assert data.item_ids.to_pylist() == ["10", "11", "12", "13", "B0"]
    assert data.user_ids.to_pylist() == [0, 1, 2]


def test_large_sparse_integers(tmp_path, prepared):
    rows = [(u * 10**15 - 7, i * 1000, s) for u, i, s in ALL]
    (tmp_path / "a.csv").write_text(text(rows, "user,item,split", ","))
    data = prepared(tables.read(tmp_path / "a.csv", Options.of()))
    assert data.user_ids.to_pylist() == [-7, 10**15 - 7, 2 * 10**15 - 7]
    assert pairs(data) == sorted_pairs(SMALL)


def test_items_table_sets_the_order_of_rows(folder, prepared):
    """Row i of the features belongs to row i of the items table, whatever its ids."""
    name = {0: "b", 1: "d", 2: "a", 3: "c"}
    for split, rows in SMALL.items():
        (folder / f"{split}.tsv").write_text(text([(u, name[i]) for u, i in rows]))
    (folder / "items.tsv").write_text(text([(name[i],) for i in range(4)], "item_id"))
    data = prepared(tables.read(folder, Options.of()))
    assert data.item_ids.to_pylist() == list("bdac")
    assert pairs(data) == sorted_pairs(SMALL)


def test_rating_threshold_and_random_split(tmp_path, prepared):
    rows = [(u, i, r) for u in range(3) for i in range(20) for r in [5 if i < 10 else 2.5]]
    (tmp_path / "r.csv").write_text(text(rows, "userId,movieId,rating", ","))
    options = Options.of(threshold=3, split="random")
    data = prepared(tables.read(tmp_path / "r.csv", options))
    assert data.meta["interactions"] == {"train": 24, "val": 3, "test": 3}
    assert data.n_items == 10  # items that nobody liked are not in the catalogue
    assert data.meta["provenance"]["options"]["threshold"] == 3
    assert any("30 interactions" in note for note in data.meta["provenance"]["notes"])


@pytest.mark.parametrize("kind", ["number", "iso", "timestamp"])
def test_times(tmp_path, prepared, kind):
    hours = [3, 1, 2, 9, 8, 7]
    days = [f"2020-01-01T0{h}:00:00" for h in hours]
    time = {"number": [h * 0.5 for h in hours], "iso": days, "timestamp": np.array(days, "datetime64[s]")}[kind]
    table = pa.table({"user": [0, 0, 0, 1, 1, 1], "item": [0, 1, 2, 0, 1, 2], "when": time})
    if kind == "timestamp":
        pq.write_table(table, tmp_path / "t.parquet")
        path = tmp_path / "t.parquet"
    else:
        path = tmp_path / "t.csv"
        path.write_text(text([tuple(row.values()) for row in table.to_pylist()], "user,item,when", ","))
    data = prepared(tables.read(path, Options.of(split="leave-last-out", time_column="when")))
    assert pairs(data) == {"train": [(0, 1), (1, 2)], "val": [(0, 2), (1, 1)], "test": [(0, 0), (1, 0)]}


def test_duplicates_before_the_split_are_reported(tmp_path, prepared):
    rows = [(0, i) for i in range(10)] + [(0, 0)] * 3
    (tmp_path / "a.csv").write_text(text(rows, "user,item", ","))
    data = prepared(tables.read(tmp_path / "a.csv", Options.of(split="random")))
    assert data.meta["duplicates_dropped"]["before_split"] == 3


@pytest.mark.parametrize("shape", ["list", "fixed", "columns"])
def test_parquet_features(folder, prepared, shape):
    """Keyed by item id, in any order; an item without a row, or with a null one, lacks the modality."""
    (folder / "visual_small.npy").unlink()
    (folder / "items.tsv").unlink()
    (folder / "has_visual.npy").unlink()
    order = [3, 0, 2]
    rows = [FEATURES[i].tolist() for i in order[:2]] + [None]
    if shape == "columns":
        table = pa.table({"itemID": order, "a": [r and r[0] for r in rows], "b": [r and r[1] for r in rows]})
    else:
        kind = pa.list_(pa.float32(), 2) if shape == "fixed" else pa.list_(pa.float32())
        table = pa.table({"itemID": order, "vector": pa.array(rows, kind)})
    pq.write_table(table, folder / "sound.parquet")
    data = prepared(tables.read(folder, Options.of()))
    assert data.present("sound").tolist() == [True, False, False, True]
    np.testing.assert_array_equal(data.features("sound")[[0, 3]], FEATURES[[0, 3]])
    assert pairs(data) == sorted_pairs(SMALL)


def test_parquet_features_bring_items_that_nobody_used(folder, prepared):
    for name in ("visual_small.npy", "items.tsv", "has_visual.npy"):
        (folder / name).unlink()
    pq.write_table(pa.table({"itemID": [5, 0, 1, 2, 3], "x": [9.0, 0, 1, 2, 3]}), folder / "sound.parquet")
    data = prepared(tables.read(folder, Options.of()))
    assert data.item_ids.to_pylist() == [0, 1, 2, 3, 5]
    assert data.features("sound")[:, 0].tolist() == [0, 1, 2, 3, 9]


def test_named_features_and_flags(folder, prepared):
    np.save(folder / "x.npy", FEATURES)
    np.save(folder / "f.npy", np.array([False, True, True, True]))
    features = {"image": folder / "visual_small.npy", "x": folder / "x.npy"}
    data = prepared(tables.read(folder, Options.of(features=features, present={"x": folder / "f.npy"})))
    assert list(data.modalities) == ["image", "x"]
    assert not data.present("x")[0]
    assert not data.present("image")[2]  # has_visual.npy plainly belongs to visual_small.npy
    np.save(folder / "has_smell.npy", np.ones(4, dtype=bool))
    notes = tables.read(folder, Options.of(features=features)).notes
    assert any("has_smell.npy belongs to no one modality" in note for note in notes)


def test_no_header(tmp_path, prepared):
    for split, rows in SMALL.items():
        (tmp_path / f"{split}.txt").write_text("".join(f"9 {i} {u}\n".replace(" ", "\t") for u, i in rows))
    options = Options.of(header=False, user_column="3", item_column="2")
    assert pairs(prepared(tables.read(tmp_path, options))) == sorted_pairs(SMALL)
    with pytest.raises(DataError, match=r"train.txt: the first line holds only numbers"):
        tables.read(tmp_path, replace(options, text=Text()))


def test_one_based_ids_are_noted(folder):
    (folder / "items.tsv").unlink()
    for split, rows in SMALL.items():
        (folder / f"{split}.tsv").write_text(text([(u, i + 1) for u, i in rows]))
    np.save(folder / "visual_small.npy", np.zeros((5, 2)))
    np.save(folder / "has_visual.npy", np.ones(5, dtype=bool))
    assert any("item 0 never occurs" in note for note in tables.read(folder, Options.of()).notes)


def put(name: str, content: str | bytes):
    def change(src: Path) -> None:
        (src / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def array(name: str, content: np.ndarray):
    return lambda src: np.save(src / name, content)


def parquet(name: str, **content):
    return lambda src: pq.write_table(pa.table(content), src / name)


def drop(*names: str):
    def change(src: Path) -> None:
        for name in names:
            (src / name).unlink()

    return change


BAD = {
    "missing split": (drop("val.tsv"), {}, r"has train.tsv and test.tsv but no val table"),
    "no tables": (drop("train.tsv", "val.tsv", "test.tsv"), {}, r"found no table"),
    "unknown user column": (put("val.tsv", "who\titemID\n1\t1\n"), {}, r"val.tsv: no user column among who, itemID"),
    "given column": (None, {"item_column": "movie"}, r"train.tsv: no column 'movie'; it has userID, itemID"),
    "two candidates": (put("val.tsv", "user_id\tuserID\titemID\n1\t1\t1\n"), {}, r"both look like user"),
    "doubled column": (put("val.tsv", "userID\tuserID\titemID\n1\t1\t1\n"), {}, r"'userID' stands twice"),
    "ragged row": (put("val.tsv", "userID\titemID\n0\t2\n1\t3\t4\n"), {}, r"val.tsv, line 3: 3 cells, expected 2"),
    "missing id": (put("val.tsv", "userID\titemID\n0\t2\n\t3\n"), {}, r"val.tsv, line 3: the user id is missing"),
    "not an integer": (
        lambda src: (drop("items.tsv")(src), put("val.tsv", "userID\titemID\n0\t2\n0\tx2\n")(src)),
        {},
        r"val.tsv, line 3: item id 'x2' is not an integer; rows of visual_small.npy are items 0..3",
    ),
    "out of range": (
        lambda src: (drop("items.tsv")(src), put("val.tsv", "userID\titemID\n0\t2\n1\t8\n")(src)),
        {},
        r"val.tsv, line 3: item id 8 is out of range 0..3, the rows of visual_small.npy",
    ),
    "unknown item": (
        put("val.tsv", "userID\titemID\n0\t9\n"),
        {},
        r"val.tsv, line 2: item id 9 is not among the 4 ids",
    ),
    "empty split": (put("val.tsv", "userID\titemID\n"), {}, r"val.tsv: no interactions"),
    "empty file": (put("val.tsv", ""), {}, r"val.tsv: is empty"),
    "not text": (put("val.tsv", b"userID\titemID\n\xff\xfe\t1\n"), {}, r"val.tsv: "),
    "not Parquet": (
        lambda src: (drop("val.tsv")(src), put("val.parquet", "hello")(src)),
        {},
        r"val.parquet: not a Parquet file",
    ),
    "two val tables": (put("val.csv", "userID,itemID\n0,2\n"), {}, r"holds both val.csv and val.tsv"),
    "overlap": (put("val.tsv", text([(0, 2), (2, 2)])), {}, r"train.tsv and val.tsv: .* overlap in 1 .*user 2, item 2"),
    "fewer rows": (array("visual_small.npy", FEATURES[:3]), {}, r"has_visual.npy: 4 flags for the 3 rows"),
    "rows and items": (array("text_x.npy", np.ones((5, 2))), {}, r"text_x.npy: 5 feature rows for 4 items"),
    "NaN": (array("text_x.npy", FEATURES * np.nan), {}, r"text_x.npy: row 0 holds NaN"),
    "one-dimensional": (array("text_x.npy", FEATURES[:, 0]), {}, r"text_x.npy: expected \[items, width\]"),
    "object features": (array("text_x.npy", np.array([{}] * 4)), {}, r"text_x.npy: not a .npy array of numbers"),
    "damaged features": (put("text_x.npy", "no"), {}, r"text_x.npy: not a .npy array of numbers"),
    "same name": (array("visual_b.npy", FEATURES), {}, r"visual_b.npy and visual_small.npy are both modality 'visual'"),
    "bad flags": (array("has_visual.npy", np.arange(4)), {}, r"has_visual.npy: expected one boolean per item"),
    "no such feature": (None, {"features": {"a": Path("a.npy")}}, r"a.npy: no such feature file"),
    "flags of nothing": (None, {"present": {"a": Path("a.npy")}}, r"a.npy: flags of modality 'a', which is not among"),
    "split of splits": (None, {"split": "random"}, r"are split already"),
    "threshold without ratings": (None, {"threshold": 3.0}, r"train.tsv: no rating column"),
    "ratings without threshold": (None, {"rating_column": "itemID"}, r"say from which rating"),
    "rating": (
        put("train.tsv", "userID\titemID\trating\n0\t1\t5\n0\t0\tfour\n"),
        {"threshold": 3.0},
        r"train.tsv, line 3: rating 'four' is not a number",
    ),
    "NaN rating": (
        put("train.tsv", "userID\titemID\trating\n0\t1\tnan\n"),
        {"threshold": 3.0},
        r"train.tsv, line 2: rating is NaN",
    ),
    "doubled item": (put("items.tsv", "itemID\n0\n1\n1\n"), {}, r"items.tsv: item id 1 stands there twice"),
    "doubled feature row": (parquet("text_x.parquet", itemID=[0, 1, 0], x=[1.0, 2, 3]), {}, r"row 2: item 0 has a row"),
    "feature of no item": (parquet("text_x.parquet", itemID=[0, 7], x=[1.0, 2]), {}, r"row 1: item id 7 is not among"),
    "ragged lists": (parquet("text_x.parquet", itemID=[0, 1], x=[[1.0, 2], [3.0]]), {}, r"row 1: 1 feature values"),
    "NaN in Parquet": (parquet("text_x.parquet", itemID=[0, 1], x=[1.0, np.nan]), {}, r"row 1: a feature is NaN"),
    "words in Parquet": (parquet("text_x.parquet", itemID=[0, 1], x=["a", "b"]), {}, r"features must be numbers"),
    "float ids": (
        lambda src: (drop("val.tsv")(src), parquet("val.parquet", userID=[0, 1], itemID=[2.0, 2.5])(src)),
        {},
        r"val.parquet, row 1: item id 2.5 is not an integer",
    ),
    "boolean ids": (
        lambda src: (drop("val.tsv")(src), parquet("val.parquet", userID=[0, 1], itemID=[True, False])(src)),
        {},
        r"item ids must be integers or strings, got bool",
    ),
    "null id": (
        lambda src: (drop("val.tsv")(src), parquet("val.parquet", userID=[0, None], itemID=[2, 2])(src)),
        {},
        r"val.parquet, row 1: the user id is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(folder, prepared, case):
    change, options, message = BAD[case]
    if change:
        change(folder)
    with pytest.raises(DataError, match=message):
        prepared(tables.read(folder, Options.of(**options)))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("user,item\n0,1\n", {}, r"a.csv: no split: .* --split random or leave-last-out or temporal"),
        ("user,item\n0,1\n", {"split": "temporal"}, r"a.csv: no time column"),
        ("user,item,time\n0,1,3\n0,2,x\n", {"split": "temporal"}, r"a.csv, line 3: time 'x' is not a number"),
        ("user,item,split\n0,1,train\n0,2,maybe\n", {}, r"a.csv, line 3: split 'maybe'; expected train, val or test"),
        ("user,item,split\n0,1,train\n0,2,val\n", {}, r"a.csv: test is empty"),
        ("user,item,split\n0,1,train\n", {"split": "random"}, r"a.csv: has a split column, 'split'"),
        ("user,item\n0,1\n0,2\n", {"split": "random"}, r"a.csv: val is empty"),
        ("user,item,rating\n0,1,1\n", {"split": "random", "threshold": 3.0}, r"a.csv: no rating reaches 3"),
    ],
)
def test_refusals_of_one_file(tmp_path, prepared, content, options, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        prepared(tables.read(tmp_path / "a.csv", Options.of(**options)))


REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.mark.parametrize(("name", "shape"), [("ml100k", (942, 1361, 42151)), ("ml1m", (6036, 3081, 346501))])
def test_real_movielens(prepared, name, shape):
    if not (REAL / name).is_dir():
        pytest.skip(f"shared/data/{name} is not beside the repository")
    data: Dataset = prepared(tables.read(REAL / name, Options.of()))
    assert (data.n_users, data.n_items, data.size("train")) == shape
    raw = np.loadtxt(REAL / name / "test.tsv", skiprows=1, dtype=int)
    assert pairs(data)["test"] == sorted(map(tuple, raw.tolist()))  # ids are kept
    visual = np.load(REAL / name / "visual_pca128.npy")
    has = np.load(REAL / name / "has_visual.npy")
    np.testing.assert_array_equal(data.features("visual")[has], visual[has])
    np.testing.assert_array_equal(data.present("visual"), has)
    assert set(data.modalities) == {"visual", "audio", "text"}
