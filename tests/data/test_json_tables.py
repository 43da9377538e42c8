"""JSON documents and JSON lines as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from data_helpers import everything, grid

from m3dist.data.dataset import DataError
from m3dist.data.importers import tables

FRAME = pd.DataFrame(grid(), columns=["user_id", "item_id"]).assign(rating=4.5, when=range(40))
BY_USER = {u: [i for v, i in grid() if v == u] for u in ("u0", "u1", "u2", "u3")}
LINES = FRAME.to_json(orient="records", lines=True)
DOCUMENTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lines": ("a.jsonl", LINES, {}),
    "lines called .json": ("a.json", LINES, {}),
    "empty lines": ("a.jsonl", LINES.replace("\n", "\n\n"), {}),
    "lines with a mark": ("a.jsonl", "\ufeff" + LINES, {}),
    "lines without an end": ("a.jsonl", LINES.strip(), {}),
    "lines with more keys": ("a.jsonl", LINES.replace('"rating"', '"text":"so\\n, \\"so\\"","rating"', 9), {}),
    "Python's literals": ("a.json", "".join(f"{row!r}\n" for row in FRAME.to_dict("records")), {}),
    "a list of objects": ("a.json", FRAME.to_json(orient="records"), {}),
    "a list over many lines": ("a.json", json.dumps(FRAME.to_dict("records"), indent=2), {}),
    "columns": ("a.json", FRAME.to_json(), {}),
    "columns as lists": ("a.json", json.dumps(FRAME.to_dict("list")), {}),
    "split": ("a.json", FRAME.to_json(orient="split"), {}),
    "values": ("a.json", FRAME.to_json(orient="values"), {}),
    "items by user": ("a.json", json.dumps(BY_USER), {}),
    "items by user, over many lines": ("a.json", json.dumps(BY_USER, indent=1), {}),
    "ratings by user": ("a.json", json.dumps({u: dict.fromkeys(i, 5) for u, i in BY_USER.items()}), {"threshold": 4}),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_read(tmp_path: Path, kind: str) -> None:
    name, content, options = DOCUMENTS[kind]
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert everything(tables.read(tmp_path / name, split="random", **options)) == set(grid())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken\n" * 3, r"a.jsonl: no JSON object in the first 1000 lines"),
        (LINES + "{broken\n", r"a.jsonl, line 41: '\{broken' is not a JSON object"),
        (LINES + "[1, 2]\n", r"a.jsonl, line 41: '\[1, 2\]' is not a JSON object"),
        (LINES + '{"user_id": null, "item_id": "b1"}\n', r"a.jsonl, line 41: the user id is missing"),
        (LINES + '{"item_id": "b1"}\n', r"a.jsonl, line 41: the user id is missing"),
    ],
)
def test_refused_lines(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        tables.read(tmp_path / "a.jsonl", split="random")
    if "line 41" in message:
        source = tables.read(tmp_path / "a.jsonl", split="random", on_bad_row="drop")
        assert everything(source) == set(grid())
        assert any("left out 1 rows" in note for note in source.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"a.json: not JSON"),
        ("", r"a.json: not JSON"),
        ("[1, 2]", r"a.json: JSON, but no table"),
        ('{"a": 1}', r"a.json: no user column among a"),
        ('[["u", "i"], ["u"]]', r"a.json, entry 1: expected a list of 2 values"),
        ('{"user_id": [1, 2], "item_id": [1]}', r"its columns \(user_id, item_id\) are no lists of one length"),
        ("[" * 100_000, r"a.json: not JSON"),
    ],
)
def test_refused_documents(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        tables.read(tmp_path / "a.json", split="random")
    assert "\n" not in str(error.value)
