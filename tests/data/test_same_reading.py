"""The same content gives the same data set, whatever kind of file it is in (properties, by hypothesis)."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import tempfile
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from m3dist.data.dataset import DataError
from m3dist.data.importers import tables
from m3dist.data.importers.common import write
from m3dist.data.importers.options import Options

TINY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
NO_IDS = ("nan", "null", "none", "na", "n/a", "<na>", "\\n", "nat", "user", "item")  # what stands for none; columns
WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp"), exclude_characters="\ufeff"),
    min_size=1,
    max_size=6,
).filter(lambda word: word.lower() not in NO_IDS and word[0] not in "#%")
TITLES = st.text(st.sampled_from("ab ,;|\t\"'\n\\:é語{}[]"), max_size=12)
INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
UNSIGNED = st.integers(0, (1 << 64) - 1)
IDS = st.one_of(*(st.lists(kind, min_size=2, max_size=8, unique=True) for kind in (WORDS, INTEGERS, UNSIGNED)))


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Interactions of a few users and items; the first of each split is fixed, so that none is empty."""
    users, items = draw(IDS), draw(IDS)
    pairs = draw(
        st.lists(st.tuples(st.sampled_from(users), st.sampled_from(items)), min_size=3, max_size=25, unique=True)
    )
    assume(len(pairs) >= 3)
    more = len(pairs) - 3
    names = ["train", "val", "test"]
    splits = [*names, *draw(st.lists(st.sampled_from(names), min_size=more, max_size=more))]
    titles = draw(st.lists(TITLES, min_size=len(pairs), max_size=len(pairs)))
    return [{"user": u, "item": i, "split": s, "title": t} for (u, i), s, t in zip(pairs, splits, titles, strict=True)]


def delimited(path: Path, table: list[dict[str, Any]], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(table[0]), delimiter=delimiter, lineterminator="\n")
        out.writeheader()
        out.writerows(table)


def arrow(table: list[dict[str, Any]]) -> pa.Table:
    columns = {}
    for name in table[0]:
        values = [row[name] for row in table]
        try:
            columns[name] = pa.array(values)
        except (OverflowError, pa.ArrowInvalid):
            columns[name] = pa.array(values, pa.uint64())
    return pa.table(columns)


def written(folder: Path, table: list[dict[str, Any]]) -> list[Path]:
    """The table in every kind of file."""
    csv_path, tsv = folder / "a.csv", folder / "a.tsv"
    delimited(csv_path, table, ",")
    delimited(tsv, table, "\t")
    (folder / "a.csv.gz").write_bytes(gzip.compress(csv_path.read_bytes()))
    (folder / "a.tsv.bz2").write_bytes(bz2.compress(tsv.read_bytes()))
    with pa.CompressedOutputStream(str(folder / "a.csv.zst"), "zstd") as out:
        out.write(csv_path.read_bytes())
    with zipfile.ZipFile(folder / "a.csv.zip", "w") as archive:
        archive.write(csv_path, "a.csv")
    lines = "".join(json.dumps(row) + "\n" for row in table)
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.json").write_text(json.dumps(table))
    (folder / "crlf.csv").write_bytes(b"\xef\xbb\xbf" + csv_path.read_bytes().replace(b"\n", b"\r\n"))
    (folder / "wide.csv").write_bytes(csv_path.read_bytes().decode().encode("utf-16"))
    content = arrow(table)
    pq.write_table(content, folder / "a.parquet")
    text = [field.name for field in content.schema if pa.types.is_string(field.type)]  # as other writers encode it
    encoded = dict.fromkeys(text, "DELTA_BYTE_ARRAY")
    pq.write_table(content, folder / "delta.parquet", use_dictionary=False, column_encoding=encoded)
    pq.write_table(
        content.set_column(0, "user", content["user"].dictionary_encode()), folder / "b.parquet", row_group_size=2
    )
    feather.write_feather(content, str(folder / "a.feather"))
    if pa.types.is_string(content["item"].type):
        views = content.set_column(1, "item", content["item"].cast(pa.large_string()))
        with pa.ipc.new_stream(str(folder / "a.arrow"), views.schema) as stream:
            stream.write_table(views)
    return sorted(folder.iterdir())


def outcome(path: Path, folder: Path, **options: Any) -> tuple[Any, ...]:
    """Fingerprint and ids, or that the source was refused."""
    try:
        source = tables.read(path, Options.of(**options))
        ids = source.user_ids.to_pylist(), source.item_ids.to_pylist()
        return write(source, folder / "out")["fingerprint"], *ids
    except DataError as error:
        return ("refused", str(error).split(":")[0] == path.name.split(",")[0])


@TINY
@given(rows())
def test_every_kind_of_file_gives_the_same_data_set(table: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        found = {path.name: outcome(path, folder) for path in written(folder / "in", table)}
        assert len(set(map(str, found.values()))) == 1, found
        assert found["a.csv"][0] != "refused" or _unlike(table)


@TINY
@given(st.data(), rows(), st.sampled_from(["temporal", "leave-last-out", "random"]))
def test_ratings_and_times_too(data: st.DataObject, table: list[dict[str, Any]], split: str) -> None:
    """Times as integers, with fractions, or in ISO 8601; ratings with every digit of a float."""
    seconds = st.integers(0, 1 << 33) if data.draw(st.booleans()) else st.floats(0, 1e9, allow_nan=False)
    moments = st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1)).map(datetime.isoformat)
    kind = moments if data.draw(st.booleans()) else seconds
    table = [{**row, "rating": data.draw(st.floats(0, 5)), "time": data.draw(kind)} for row in table]
    for row in table:
        del row["split"], row["title"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        options = {"split": split, "threshold": 1.0, "at_least_one": split == "random"}
        found = {path.name: outcome(path, folder, **options) for path in written(folder / "in", table)}
        assert len(set(map(str, found.values()))) == 1, found


def _unlike(table: list[dict[str, Any]]) -> bool:
    """Ids that may be refused: numbers that are no integers."""
    return any(str(row[key]).replace(".", "", 1).isdigit() for row in table for key in ("user", "item"))


@TINY
@given(rows(), st.integers(1, 60))
def test_the_size_of_blocks_does_not_matter(table: list[dict[str, Any]], size: int) -> None:
    from m3dist.data.importers import text

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        delimited(folder / "a.csv", table, ",")
        whole = outcome(folder / "a.csv", folder)
        patch.setattr(text, "BLOCK", size)
        assert outcome(folder / "a.csv", folder) == whole
