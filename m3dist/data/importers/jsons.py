"""JSON as tables: one object a line, a list of objects, or users with their items.

Numbers become the text that CSV would hold, so that the same content gives the same ids.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.names import ITEM, USER, known, listed
from m3dist.data.importers.options import Text
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.sniff import LONGEST, Decoder
from m3dist.data.importers.table import Batch, Table

ROWS = 1 << 16
_TEXT = 1 << 24  # characters of a batch
_SEEN = 1000  # objects that columns are looked for in
SUFFIXES = (".json", ".jsonl", ".ndjson", ".jl")


class JsonLines(Table):
    """A file with one JSON object a line, as review dumps have."""

    def __init__(self, path: Path, encoding: str):
        self._encoding = encoding
        found: dict[str, None] = {}
        for _, value, _ in islice(_lines(path, encoding), _SEEN):
            found |= dict.fromkeys(value) if isinstance(value, dict) else {}
        if not found:
            raise DataError(f"{path.name}: no JSON object in the first {_SEEN} lines; expected one a line")
        super().__init__(path, tuple(map(str, found)))
        self.reading = ", ".join(x for x in ("JSON lines", files.compression(path)) if x)

    def batches(self, names: list[str], bad: BadRows) -> Iterator[Batch]:
        values, lines, size = [], [], 0
        for line, value, text in _lines(self.path, self._encoding):
            if not isinstance(value, dict):
                bad.refuse("not JSON", f"{self.name}, line {line}", f"{text[:60]!r} is not a JSON object")
                continue
            values.append([value.get(name) for name in names])
            lines.append(line)
            size += len(text)
            if len(values) == ROWS or size > _TEXT:
                yield self._batch(values, lines)
                values, lines, size = [], [], 0
        if values:
            yield self._batch(values, lines)

    def _batch(self, values: list[list[Any]], lines: list[int]) -> Batch:
        return (lambda at: f"{self.name}, line {lines[at]}"), [_column(x) for x in zip(*values, strict=True)]


class JsonRows(Table):
    """A whole JSON document as rows: a list of objects, or {user: items}, or {user: {item: rating}}."""

    def __init__(self, path: Path, columns: tuple[str, ...], rows: list[tuple], reading: str):
        super().__init__(path, columns)
        self._rows, self.reading = rows, reading

    def batches(self, names: list[str], bad: BadRows) -> Iterator[Batch]:
        wanted = [self.columns.index(name) for name in names]
        for start in range(0, len(self._rows), ROWS):
            part = self._rows[start : start + ROWS]
            yield self._place(start), [_column([row[i] for row in part]) for i in wanted]

    def _place(self, start: int) -> Any:
        return lambda at: f"{self.name}, entry {start + at}"


def open_json(path: Path, text: Text) -> Table:
    """Recognise what a JSON file holds. Raises DataError."""
    encoding = text.encoding or "utf-8"
    first = next(iter(_lines(path, encoding)), (0, None, ""))
    record = isinstance(first[1], dict) and not _items_by_user(first[1])
    if record or files.suffix(path) in SUFFIXES[1:]:
        return JsonLines(path, encoding)
    return _document(path, load(path, encoding))


def load(path: Path, encoding: str = "utf-8") -> Any:
    """The content of a JSON file. Raises DataError."""
    try:
        with files.stream(path) as file:
            data = file.read(files.allowance(path.stat().st_size) + 1)
        files.need_backing(path, len(data), "its content")
        with files.bounded(path):
            return json.loads(data.decode("utf-8-sig" if encoding == "utf-8" else encoding))
    except (ValueError, RecursionError, LookupError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name}: not JSON ({files.first_line(error)})") from None


def _document(path: Path, content: Any) -> Table:
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        columns = tuple(dict.fromkeys(key for row in content for key in row))
        rows = [tuple(row.get(column) for column in columns) for row in content]
        return JsonRows(path, columns, rows, "a JSON list of objects")
    if isinstance(content, list) and content and all(isinstance(row, list) for row in content):
        columns = tuple(str(i + 1) for i in range(len(content[0])))
        table = JsonRows(path, columns, _alike(path, content, len(columns)), "a JSON list of rows")
        table.numbered = True
        return table
    if isinstance(content, dict) and isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        columns = tuple(map(str, content["columns"]))  # as pandas writes it with orient="split"
        return JsonRows(path, columns, _alike(path, content["data"], len(columns)), "a JSON table")
    if isinstance(content, dict) and known(list(content), USER) and known(list(content), ITEM):
        return JsonRows(path, tuple(content), _transposed(path, content), "JSON of columns")  # pandas' own way
    if isinstance(content, dict) and _items_by_user(content):
        if any(isinstance(items, dict) for items in content.values()):
            rated = [(u, i, r) for u, items in content.items() for i, r in dict(items).items()]
            return JsonRows(path, ("user", "item", "rating"), rated, "JSON of {user: {item: rating}}")
        rows = [(u, i) for u, items in content.items() for i in items]
        return JsonRows(path, ("user", "item"), rows, "JSON of {user: items}")
    raise DataError(
        f"{path.name}: JSON, but no table; expected one object a line, a list of objects, or {{user: [items]}}"
    )


def _alike(path: Path, rows: list[Any], width: int) -> list[tuple]:
    """Rows of `width` values each."""
    odd = next((i for i, row in enumerate(rows) if not isinstance(row, list) or len(row) != width), -1)
    if odd >= 0:
        raise DataError(f"{path.name}, entry {odd}: expected a list of {width} values, like the entries before it")
    return [tuple(row) for row in rows]


def _transposed(path: Path, content: dict[str, Any]) -> list[tuple]:
    """Rows of {column: values}, where values are a list, or {row: value}."""
    columns = [list(c.values()) if isinstance(c, dict) else c for c in content.values()]
    if not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        raise DataError(f"{path.name}: its columns ({listed(list(content))}) are no lists of one length")
    return list(zip(*columns, strict=True))


def _items_by_user(content: dict) -> bool:
    kinds = {type(value) for value in content.values()}
    return kinds == {list} or kinds == {dict}


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, Any, str]]:
    """Number, value and text of each line that is not empty; the value is None where the line is no JSON."""
    with files.stream(path) as file:
        for number, line in enumerate(_split(path, file, encoding), 1):
            if line.strip():
                yield number, _parse(line), line


def _split(path: Path, file: IO[bytes], encoding: str) -> Iterable[str]:
    rest, source = b"", Decoder(file, encoding)
    try:
        while block := source.read(1 << 20):
            *whole, rest = (rest + block).split(b"\n")
            yield from (line.decode("utf-8") for line in whole)
            if len(rest) > LONGEST and files.compression(path):
                raise DataError(f"{path.name}: one line of more than {LONGEST >> 20} MiB")
        yield rest.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name}: is not text in {encoding} ({error.reason}); if it is Western European text, say "
            "--encoding latin-1"
        ) from None


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        pass
    if not line.startswith("{'"):
        return None
    try:
        return ast.literal_eval(line)  # old dumps hold Python's literals; this reads literals and runs nothing
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _column(values: Iterable[Any]) -> pa.Array:
    """Values as text, or as lists of numbers."""
    values = list(values)
    if any(isinstance(value, list) for value in values):
        try:
            return pa.array(values, pa.list_(pa.float64()))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            pass
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(value, default=str)
