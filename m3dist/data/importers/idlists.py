"""Lists of ids that a person gives, and which ids of a data set they mean."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3dist.data.dataset import DataError
from m3dist.data.importers import files, names
from m3dist.data.importers.opening import SUFFIXES, open_table
from m3dist.data.importers.options import Text
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.sniff import Decoder
from m3dist.data.importers.table import USER, Role, Table
from m3dist.data.importers.values import as_id

_LISTED = 10  # unknown ids that a message names
_PLAIN = ("", ".txt", ".lst", ".list", ".ids")  # an id a line, unless a header says otherwise


USERS = Role("user", (*names.USER, "id"), "--users-column")
ITEMS = Role("item", names.IDS, "a header that names it item")
NUMBER = Role("boost", ("boost", "value", *names.RATING), "a header that names it boost")


def read_ids(path: Path, column: str | None = None, role: Role = USERS) -> list[Any]:
    """The ids of a file: one a line, or a column of a table of any kind. Empty ones are left out.

    column: its name, or its number where no header names it; by default the one with a known name, or the only one.
    role: of what they are ids. Raises DataError.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; expected {role.what} ids, one a line or in a table")
    table = _table(path, column, role)
    if table is None:
        ids = _lines(path, role.what)
    else:
        ids = []
        for _, batch in table.batches([_column(table, column, role)], BadRows(drop=True)):
            ids += batch[0].to_pylist()
    ids = [value for value in ids if value is not None and str(value).strip()]
    if not ids:
        hint = ", or leave --users out for all users" if role is USERS else ""
        raise DataError(f"{path}: holds no {role.what} ids; expected one a line{hint}")
    return ids


def read_pairs(path: Path, first: Role, second: Role) -> list[tuple[Any, Any]]:
    """Two columns of a table of any kind, row by row: those with known names, or without a header the first two.

    Rows that lack either are left out. Raises DataError.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; expected a table of {first.what}s and {second.what}s")
    table = open_table(path, Text(header=None))
    if table.numbered and len(table.columns) < 2:
        raise DataError(f"{table.name}: one column; expected two, {first.what} and {second.what}")
    columns = ["1", "2"] if table.numbered else [table.pick(None, role) for role in (first, second)]
    pairs: list[tuple[Any, Any]] = []
    for _, batch in table.batches(columns, BadRows(drop=True)):
        pairs += zip(*(column.to_pylist() for column in batch), strict=True)
    pairs = [pair for pair in pairs if all(value is not None and str(value).strip() for value in pair)]
    if not pairs:
        raise DataError(f"{path}: holds no {first.what} and {second.what}")
    return pairs


def read_histories(path: Path) -> dict[Any, list[Any]]:
    """Items by user, of a table with a row each."""
    out: dict[Any, list[Any]] = {}
    for user, item in read_pairs(path, USERS, ITEMS):
        out.setdefault(user, []).append(item)
    return out


def read_items(path: Path) -> list[Any] | dict[Any, list[Any]]:
    """Items for everybody, one a line or in a table; where the table has a column of users too, items by user."""
    if path.exists():
        table = _table(path, None, ITEMS)
        if table is not None and (table.holds(USER) or (table.numbered and len(table.columns) > 1)):
            return read_histories(path)
    return read_ids(path, None, ITEMS)


def read_boosts(path: Path) -> dict[Any, float]:
    """A number by item, of a table with a row each. Raises DataError where one is no number."""
    out: dict[Any, float] = {}
    for item, value in read_pairs(path, ITEMS, NUMBER):
        try:
            out[item] = float(value)
        except (TypeError, ValueError):
            raise DataError(f"{path}: item {item!r}: expected a number, got {value!r}") from None
    return out


def known_ids(given: Iterable[Any], everyone: pa.ChunkedArray, source: str, skip_unknown: bool = False) -> list[Any]:
    """The given user ids as the data set has them: 7, "7" and 7.0 are one where its ids are integers.

    everyone: all ids of the data set; source: where the ids come from, for messages. Raises DataError on ids that are
    not among them, but for skip_unknown.
    """
    at = places(given, everyone, source, skip_unknown)
    return everyone.take(pa.array(at[at >= 0])).to_pylist()


def places(
    given: Iterable[Any], everyone: pa.ChunkedArray, source: str, skip_unknown: bool = False, what: str = "user"
) -> np.ndarray:
    """Where the given ids stand among those of the data set, int64; under skip_unknown -1 for those that do not.

    what: of what they are ids, for messages. Raises DataError as `known_ids` does.
    """
    given = list(given)
    found = _quickly(given, everyone)
    if found is not None:
        return found
    integers, place = pa.types.is_integer(everyone.type), {key: at for at, key in enumerate(everyone.to_pylist())}
    at = np.array([place.get(as_id(value, integers), -1) for value in given], dtype=np.int64)
    unknown = [given[missing] for missing in np.flatnonzero(at < 0)]
    if unknown and (not skip_unknown or len(unknown) == len(given)):
        listed = ", ".join(map(repr, unknown[:_LISTED])) + (", ..." if len(unknown) > _LISTED else "")
        remedy = "--skip-unknown leaves them out"
        if len(unknown) == len(given):
            remedy = "none is known; is it another data set's list?"
        raise DataError(f"{source}: {len(unknown):,} of {len(given):,} {what} ids are unknown: {listed}; {remedy}")
    return at


def _quickly(given: list[Any], everyone: pa.ChunkedArray) -> np.ndarray | None:
    """Places of ids that are all written as the data set has them; None where some may be written otherwise."""
    try:
        array = pa.array(given)
    except (pa.ArrowException, OverflowError, TypeError):
        return None
    if array.type != everyone.type or not len(array):
        return None
    at = pc.index_in(array, value_set=everyone)
    return None if at.null_count else at.to_numpy().astype(np.int64)


def _table(path: Path, column: str | None, role: Role) -> Table | None:
    """The file as a table; None where its lines are the ids."""
    written = Text(header=None) if column is None else Text(header=not column.isdigit())
    plain = files.suffix(path) in _PLAIN or files.suffix(path) not in SUFFIXES
    if path.is_dir() or column is not None or not plain or files.head(path, 4) == b"PAR1":
        return open_table(path, written)
    try:
        table = open_table(path, written)
    except DataError:
        return None
    return table if not table.numbered and names.known(table.columns, role.names) else None


def _column(table: Table, column: str | None, role: Role) -> str:
    if column is None and len(table.columns) == 1:
        return table.columns[0]
    if column is None and table.numbered:
        raise DataError(
            f"{table.name}: {len(table.columns)} columns, none with a known name; say which holds the {role.what}s: "
            + ("--users-column NAME, or 1, 2, ... without a header" if role is USERS else role.option)
        )
    return table.pick(column, role)


def _lines(path: Path, what: str) -> list[str]:
    with files.stream(path) as file:
        source, data = Decoder(file, "utf-8"), b""
        while block := source.read(1 << 20):
            data += block
    try:
        return [line.strip() for line in data.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected {what} ids in UTF-8, one a line ({error.reason})") from None
