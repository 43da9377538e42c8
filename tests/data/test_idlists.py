"""Lists of user ids: files of any kind, and which users of a data set they mean."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3dist.data.dataset import DataError
from m3dist.data.importers.idlists import known_ids, read_ids

FILES: dict[str, tuple[str, str | bytes, str | None]] = {
    "lines": ("users.txt", "ann\nbob\n\n cal \n", None),
    "no suffix": ("users", "ann\nbob\ncal", None),
    "Windows": ("users.txt", codecs.BOM_UTF8 + b"ann\r\nbob\r\ncal\r\n", None),
    "UTF-16": ("users.csv", "user_id\nann\nbob\ncal\n".encode("utf-16"), None),
    "a header": ("users.txt", "user_id\nann\nbob\ncal\n", None),
    "a table": ("users.csv", "age,userID\n7,ann\n8,bob\n9,cal\n", None),
    "an id column": ("users.csv", "id,age\nann,7\nbob,8\ncal,9\n", None),
    "another column": ("users.csv", "age;who\n7;ann\n8;bob\n9;cal\n", "who"),
    "no header": ("users.csv", "ann,7\nbob,8\ncal,9\n", "1"),
    "JSON lines": ("users.jsonl", '{"user": "ann"}\n{"user": "bob"}\n{"user": "cal"}\n', None),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path: Path, kind: str) -> None:
    name, content, column = FILES[kind]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert [str(x).strip() for x in read_ids(tmp_path / name, column)] == ["ann", "bob", "cal"]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"age": [1, 2, 3], "user": ["ann", None, "cal"]}), tmp_path / "users.parquet")
    assert read_ids(tmp_path / "users.parquet") == ["ann", "cal"]
    pq.write_table(pa.table({"only": [1, 2, 3]}), tmp_path / "one.parquet")
    assert read_ids(tmp_path / "one.parquet") == [1, 2, 3]


def test_ids_that_hold_separators(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("Smith, Ann\nJones, Bob\n")
    assert read_ids(tmp_path / "users.txt") == ["Smith, Ann", "Jones, Bob"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.txt", "\n\n", "holds no user ids; expected one a line"),
        ("users.csv", "age,height\n7,8\n", "2 columns, none with a known name; .*--users-column NAME"),
        ("users.txt", "é\n".encode("latin-1"), "expected user ids in UTF-8"),
        ("gone.txt", None, "no such file"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: Any, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as error:
        read_ids(tmp_path / name)
    assert name in str(error.value)


INTEGERS, TEXTS = pa.chunked_array([[7, 8, 9]]), pa.chunked_array([["7", "007", "ann"]])


@pytest.mark.parametrize("given", [["9", "7"], [9, 7], [9.0, 7.0], ["9.0", " 7 "]])
def test_integers_in_any_spelling(given: list[Any]) -> None:
    assert known_ids(given, INTEGERS, "users.txt") == [9, 7]


def test_text_is_compared_as_text() -> None:
    assert known_ids(["007", 7, "ann"], TEXTS, "users.txt") == ["007", "7", "ann"]


def test_unknown_ids_are_listed_or_skipped() -> None:
    given = [7, *range(100, 112), "x"]
    with pytest.raises(DataError) as error:
        known_ids(given, INTEGERS, "users.txt")
    assert str(error.value) == (
        "users.txt: 13 of 14 user ids are unknown: 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, ...; "
        "--skip-unknown leaves them out"
    )
    assert known_ids(given, INTEGERS, "users.txt", skip_unknown=True) == [7]
    with pytest.raises(DataError, match="2 of 2 user ids are unknown: 'a', 'b'; none is known"):
        known_ids(["a", "b"], INTEGERS, "users.txt", skip_unknown=True)
