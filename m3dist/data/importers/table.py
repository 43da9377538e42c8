"""What every kind of table has: columns with names, and batches of typed arrays.

Every problem is a DataError that names the file and the line (text) or row (Parquet).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from m3dist.data.dataset import DataError
from m3dist.data.importers import names as known
from m3dist.data.importers.rows import BadRows, Where

Batch = tuple[Where, list[pa.Array]]


@dataclass(frozen=True)
class Role:
    """What a column is for: how messages call it, the names that are known, the option that names another."""

    what: str
    names: tuple[str, ...]
    option: str
    required: bool = True


USER = Role("user", known.USER, "--user-column")
ITEM = Role("item", known.ITEM, "--item-column")
RATING = Role("rating", known.RATING, "--rating-column")
TIME = Role("time", known.TIME, "--time-column")
SPLIT = Role("split", known.SPLIT, "--split-column", required=False)
ITEMS_ID = Role("item id", known.IDS, "--items-id")
TITLE = Role("title", known.TITLE, "", required=False)


class Table:
    """A table on disk: its columns by name, read in batches.

    name: how messages call it; numbered: its columns have no names, so they are called 1, 2, ...; headed: its names
    stand in a first line; index: columns that pandas added to keep its row labels; reading: how the file is read, for
    people.
    """

    numbered = False
    headed = False
    index: tuple[str, ...] = ()
    reading = ""

    def __init__(self, path: Path, columns: tuple[str, ...], name: str = ""):
        self.path, self.columns, self.name = path, columns, name or path.name
        self._by_plain: dict[str, list[str]] = {}
        for column in columns:
            self._by_plain.setdefault(known.plain(column), []).append(column)

    def batches(self, names: list[str], bad: BadRows) -> Iterator[Batch]:
        """Batches of the named columns, and how a person finds a row of the batch. Memory holds one batch."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """The files that it reads."""
        return [self.path]

    def pick(self, given: str | None, role: Role) -> str:
        """The column for a role: the one given, or the one with a known name; "" where there is none."""
        if given is not None:
            if given not in self.columns:
                raise DataError(f"{self.name}: no column {given!r}; it has {known.listed(self.columns)}")
            return given
        for name in role.names:
            found = self._by_plain.get(name, [])
            if len(found) > 1:
                raise DataError(
                    f"{self.name}: columns {' and '.join(found)} both look like {role.what}; give {role.option}"
                )
            if found:
                return found[0]
        if not role.required:
            return ""
        hint = "; if the first line is a row, say --no-header" if self.headed and not self.holds(USER) else ""
        raise DataError(
            f"{self.name}: no {role.what} column among {known.listed(self.columns)} "
            f"(known names: {', '.join(role.names[:12])}); give {role.option}{hint}"
        )

    def first(self, names: tuple[str, ...]) -> str:
        """The first column with one of these names; "" where there is none."""
        return next((self._by_plain[name][0] for name in names if name in self._by_plain), "")

    def holds(self, *roles: Role) -> bool:
        """Whether it has columns of known names for all these roles."""
        return all(any(name in self._by_plain for name in role.names) for role in roles)


class Parts(Table):
    """Tables with the same columns, one behind the other: the files of a folder that Spark or pandas wrote."""

    def __init__(self, path: Path, parts: list[Table]):
        super().__init__(path, parts[0].columns)
        for part in parts[1:]:
            if set(part.columns) != set(self.columns):
                raise DataError(
                    f"{part.name}: has columns {known.listed(part.columns)}, but {parts[0].name} has "
                    f"{known.listed(self.columns)}; all files of a folder must have the same"
                )
        self.parts, self.index, self.numbered = parts, parts[0].index, parts[0].numbered
        self.reading = f"{len(parts)} files, {parts[0].reading}"

    def batches(self, names: list[str], bad: BadRows) -> Iterator[Batch]:
        for part in self.parts:
            yield from part.batches(names, bad)

    def files(self) -> list[Path]:
        return [file for part in self.parts for file in part.files()]


def unambiguous(name: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    """`columns`, of which none with a known name may stand twice; others get a number."""
    if len(set(columns)) == len(columns):
        return columns
    known_names = {*known.USER, *known.ITEM, "id", *known.RATING, *known.TIME, *known.SPLIT}
    seen: dict[str, int] = {}
    out = []
    for column in columns:
        seen[column] = seen.get(column, 0) + 1
        if seen[column] > 1 and known.plain(column) in known_names:
            raise DataError(f"{name}: column {column!r} stands twice in the header; rename one")
        out.append(column if seen[column] == 1 else f"{column} ({seen[column]})")
    return tuple(out)
