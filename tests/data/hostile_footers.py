"""Parquet files whose footers and page headers lie, and pages that stand for much more than they hold.

Footers and page headers are structs in Thrift's compact protocol, which is read and written here: field ids to (type,
value), lists as (type, values).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_makers import feature

_INTS, _BINARY, _LISTS, _STRUCT = (4, 5, 6), 8, (9, 10), 12
LIES = {"footer": (-1, 1 << 28, (1 << 62) + 1), "page": (-1, 0, 1 << 28, (1 << 31) - 1)}
# of a page's header: uncompressed and compressed size, and of its own header (data, dictionary, data of version 2)
# the number of values, and of nulls, rows, definition and repetition levels
PAGE = ((2,), (3,), (5, 1), (7, 1), (8, 1), (8, 2), (8, 3), (8, 5), (8, 6))
FOOTER: tuple[tuple[int, ...], ...] = (
    *((3,), (4, 0, 2), (4, 0, 3)),  # rows; of the first row group bytes and rows
    *((4, 0, 1, 0, 3, at) for at in (5, 6, 7, 9, 11)),  # of its first column values, bytes twice, and where pages begin
    *((2, 1, 2), (2, 0, 5)),  # of the schema the width of a type, and how many columns there are
)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _read(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRUCT:
        fields: dict[int, Any] = {}
        number = 0
        while data[at]:
            head, at = data[at], at + 1
            if head >> 4:
                number += head >> 4
            else:
                far, at = _varint(data, at)
                number = far >> 1 ^ -(far & 1)
            value, at = _read(data, at, head & 15)
            fields[number] = head & 15, value
        return fields, at + 1
    if kind in _LISTS:
        size, inner, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = _varint(data, at)
        values = []
        for _ in range(size):
            value, at = _read(data, at, inner)
            values.append(value)
        return (inner, values), at
    if kind == _BINARY:
        size, at = _varint(data, at)
        return data[at : at + size], at + size
    if kind in _INTS:
        value, at = _varint(data, at)
        return value >> 1 ^ -(value & 1), at
    assert kind in (1, 2), kind  # true and false, which have no bytes of their own
    return None, at


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _signed(value: int) -> bytes:
    return _number(value << 1 if value >= 0 else (-value << 1) - 1)


def _written(kind: int, value: Any) -> bytes:
    if kind == _STRUCT:
        out = b""
        for number, (inner, field) in value.items():
            out += bytes([inner]) + _signed(number) + _written(inner, field)
        return out + b"\0"
    if kind in _LISTS:
        inner, values = value
        return bytes([240 | inner]) + _number(len(values)) + b"".join(_written(inner, x) for x in values)
    if kind == _BINARY:
        return _number(len(value)) + value
    return _signed(value) if kind in _INTS else b""


def _change(struct: dict[int, Any], place: tuple[int, ...], value: int) -> bool:
    """Write a number deep inside a struct; whether it has one there."""
    held: Any = struct
    for at in place[:-1]:
        if isinstance(held, dict):
            if at not in held:
                return False
            held = held[at][1]
        else:
            held = held[1][at]
    if place[-1] not in held:
        return False
    held[place[-1]] = held[place[-1]][0], value
    return True


def footer(data: bytes, change: Callable[[dict[int, Any]], bool]) -> bytes | None:
    """A Parquet file with a changed footer; None where the change has no place in it."""
    size = int.from_bytes(data[-8:-4], "little")
    meta, _ = _read(data, len(data) - 8 - size, _STRUCT)
    if not change(meta):
        return None
    new = _written(_STRUCT, meta)
    return data[: -8 - size] + new + len(new).to_bytes(4, "little") + b"PAR1"


def header(data: bytes, change: Callable[[dict[int, Any]], bool]) -> bytes | None:
    """A Parquet file of one column with a changed header of its first page that can be changed so."""
    size = int.from_bytes(data[-8:-4], "little")
    meta, _ = _read(data, len(data) - 8 - size, _STRUCT)
    column = meta[4][1][1][0][1][1][1][0][3][1]
    at = min(column[place][1] for place in (9, 11) if place in column)
    end = at + column[7][1]
    while at < end:
        page, after = _read(data, at, _STRUCT)
        length = page[3][1]
        if change(page):
            new = _written(_STRUCT, page)
            grown = len(new) - (after - at)
            body = data[:at] + new + data[after : -8 - size]
            column[7] = column[7][0], column[7][1] + grown
            for place in (9, 11):
                if place in column and column[place][1] > at:
                    column[place] = column[place][0], column[place][1] + grown
            foot = _written(_STRUCT, meta)
            return body + foot + len(foot).to_bytes(4, "little") + b"PAR1"
        at = after + length
    return None


def _honest(version: str, dictionary: bool) -> bytes:
    """One column of lists of numbers, as features have them: ids are their places."""
    out = pa.BufferOutputStream()
    rows = pa.array([[float(k), 2.0, 3.0] for k in range(6)])
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": dictionary, "data_page_version": version}
    pq.write_table(pa.table({"vector": rows}), out, **options)
    return out.getvalue().to_pybytes()


def footers() -> Iterator[tuple[str, str, Any]]:
    """Every number of a footer and of page headers, replaced by others."""
    for version, dictionary in (("1.0", True), ("2.0", False)):
        honest = _honest(version, dictionary)
        for what, places, spoil in (("footer", FOOTER, footer), ("page", PAGE, header)):
            for place in places:
                for lie in LIES[what]:
                    made = spoil(honest, lambda struct, place=place, lie=lie: _change(struct, place, lie))
                    if made is not None:
                        name = f"a {what}'s {'.'.join(map(str, place))} of {lie}, version {version}"
                        yield name, "tables", feature("a.parquet", lambda _, made=made: made)


def _hidden_lengths(folder: Path) -> None:
    """Six lists of ten million zeros, of which the footer counts six values."""
    zeros = pa.array(np.zeros(60_000_000, np.float32))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, 70_000_000, 10_000_000, dtype=np.int32)), zeros)
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"vector": lists}), out, compression="zstd")
    made = footer(out.getvalue().to_pybytes(), lambda meta: _change(meta, (4, 0, 1, 0, 3, 5), 6))
    assert made is not None
    feature("a.parquet", lambda _: made)(folder)


def _front(folder: Path, values: pa.Array, **options: Any) -> None:
    """Interactions whose users are long and take little space."""
    row = np.arange(len(values))
    split = pa.array(["train", "val", "test"]).take(pa.array(row % 3))
    content = pa.table({"user_id": values, "item_id": row // 3, "split": split})
    pq.write_table(content, folder / "interactions.parquet", compression="zstd", **options)


def expanding() -> Iterator[tuple[str, str, Any]]:
    """Pages that stand for more than the bytes that they state, by their encoding."""
    delta = {"use_dictionary": ["split"], "column_encoding": {"user_id": "DELTA_BYTE_ARRAY"}}
    for length, rows in ((1000, 1_000_000), (100_000, 20_000)):
        text = pa.array(["x" * length]).take(pa.array(np.zeros(rows, np.int64)))
        yield (
            f"Parquet of {rows} ids of {length} characters, each the last one's beginning",
            "tables",
            lambda folder, text=text: _front(folder, text, **delta),
        )
    fixed = pa.array([b"x" * 100_000], pa.binary(100_000))
    yield (
        "Parquet of long ids of one width",
        "tables",
        lambda folder: _front(folder, fixed.take(pa.array(np.zeros(20_000, np.int64)))),
    )
    words = pa.ListArray.from_arrays(
        pa.array(np.arange(20_001, dtype=np.int32)), pa.array(["x" * 100_000]).take(pa.array(np.zeros(20_000, int)))
    )
    yield "Parquet of lists of long words", "tables", lambda folder: _front(folder, words)
    yield "Parquet of lists that its footer does not count", "tables", _hidden_lengths
