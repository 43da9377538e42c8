"""Lists of ids that a person gives, and which ids of a data set they mean."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from m3dist.data.dataset import DataError
from m3dist.data.importers import files, names
from m3dist.data.importers.opening import SUFFIXES, open_table
from m3dist.data.importers.options import Text
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.sniff import Decoder
from m3dist.data.importers.table import Role, Table
from m3dist.data.importers.values import as_id

_LISTED = 10  # unknown ids that a message names
_PLAIN = ("", ".txt", ".lst", ".list", ".ids")  # an id a line, unless a header says otherwise


def read_ids(path: Path, column: str | None = None) -> list[Any]:
    """The user ids of a file: one a line, or a column of a table of any kind. Empty ones are left out.

    column: its name, or its number where no header names it; by default the one with a known name, or the only one.
    Raises DataError.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; expected user ids, one a line or in a table")
    table = _table(path, column)
    if table is None:
        ids = _lines(path)
    else:
        ids = []
        for _, batch in table.batches([_column(table, column)], BadRows(drop=True)):
            ids += batch[0].to_pylist()
    ids = [value for value in ids if value is not None and str(value).strip()]
    if not ids:
        raise DataError(f"{path}: holds no user ids; expected one a line, or leave --users out for all users")
    return ids


def known_ids(given: Iterable[Any], everyone: pa.ChunkedArray, source: str, skip_unknown: bool = False) -> list[Any]:
    """The given ids as the data set has them: 7, "7" and 7.0 are one where its ids are integers.

    everyone: all ids of the data set; source: where the ids come from, for messages. Raises DataError on ids that are
    not among them, but for skip_unknown.
    """
    integers, all_ids, given = pa.types.is_integer(everyone.type), set(everyone.to_pylist()), list(given)
    wanted = [as_id(value, integers) for value in given]
    unknown = [value for value, key in zip(given, wanted, strict=True) if key not in all_ids]
    known = [key for key in wanted if key in all_ids]
    if unknown and (not skip_unknown or not known):
        listed = ", ".join(map(repr, unknown[:_LISTED])) + (", ..." if len(unknown) > _LISTED else "")
        remedy = "--skip-unknown leaves them out" if known else "none is known; is it another data set's list?"
        raise DataError(f"{source}: {len(unknown):,} of {len(given):,} user ids are unknown: {listed}; {remedy}")
    return known


def _table(path: Path, column: str | None) -> Table | None:
    """The file as a table; None where its lines are the ids."""
    written = Text(header=None) if column is None else Text(header=not column.isdigit())
    plain = files.suffix(path) in _PLAIN or files.suffix(path) not in SUFFIXES
    if path.is_dir() or column is not None or not plain or files.head(path, 4) == b"PAR1":
        return open_table(path, written)
    try:
        table = open_table(path, written)
    except DataError:
        return None
    return table if not table.numbered and names.known(table.columns, _ROLE.names) else None


_ROLE = Role("user", (*names.USER, "id"), "--users-column")


def _column(table: Table, column: str | None) -> str:
    if column is None and len(table.columns) == 1:
        return table.columns[0]
    if column is None and table.numbered:
        raise DataError(
            f"{table.name}: {len(table.columns)} columns, none with a known name; say which holds the users: "
            "--users-column NAME, or 1, 2, ... without a header"
        )
    return table.pick(column, _ROLE)


def _lines(path: Path) -> list[str]:
    with files.stream(path) as file:
        source, data = Decoder(file, "utf-8"), b""
        while block := source.read(1 << 20):
            data += block
    try:
        return [line.strip() for line in data.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected user ids in UTF-8, one a line ({error.reason})") from None
