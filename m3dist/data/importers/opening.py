"""Opens a table of any kind, by what is in the file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from m3dist.data.dataset import DataError
from m3dist.data.importers import files, jsons
from m3dist.data.importers.arrows import ArrowTable
from m3dist.data.importers.options import Text
from m3dist.data.importers.quotes import Quoting
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.table import Batch, Parts, Table
from m3dist.data.importers.text import TextTable

SUFFIXES = (
    *(".tsv", ".csv", ".txt", ".dat", ".data", ".tab", ".psv", ".inter", ".item", ".user"),
    *(*jsons.SUFFIXES, ".parquet", ".pq", ".arrow", ".feather", ".ipc"),
)
_BINARY = {
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "HDF5",
    b"PK\x03\x04": "a zip archive",
    b"\x80": "a pickle",
    b"%PDF": "a PDF",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"SQLite format 3": "a SQLite database",
}
Quotings = dict[Path, Quoting]


def open_table(path: Path, text: Text | None = None, quotings: Quotings | None = None) -> Table:
    """Look at a table's columns. Without a header those of a text file are named 1, 2, 3, ...

    quotings: what is known of the quotes of each file; a later Reread leaves it wiser. Raises DataError.
    """
    text, quotings = text or Text(), {} if quotings is None else quotings
    if not path.exists():
        raise DataError(f"{path.name}: no such file")
    if path.is_dir():
        return _folder(path, text, quotings)
    files.need_content(path)
    magic = files.head(path)
    if magic.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        return ArrowTable(path, magic)
    if files.suffix(path) in (".parquet", ".pq", ".arrow", ".feather", ".ipc"):
        raise DataError(f"{path.name}: not a {'Parquet' if files.suffix(path)[1] == 'p' else 'Arrow'} file")
    if not files.compression(path):
        for start, kind in _BINARY.items():
            if magic.startswith(start):
                raise DataError(f"{path.name}: {kind}, expected a table ({', '.join(SUFFIXES)}, compressed or not)")
    if files.suffix(path) in jsons.SUFFIXES or _looks_like_json(path):
        return jsons.open_json(path, text)
    return TextTable(path, text, quotings.setdefault(path, Quoting()))


def is_part_folder(path: Path) -> bool:
    """Whether a folder is one table in parts, as Spark and Dask write them."""
    if not path.is_dir():
        return False
    names = [part.name for part in path.iterdir()]
    return path.suffix == ".parquet" or "_SUCCESS" in names or any(name.startswith("part-") for name in names)


def part_files(path: Path) -> list[Path]:
    """The files of a folder that is one table; those that begin with . or _ are Spark's own."""
    found = [
        part
        for part in sorted(path.rglob("*"))
        if part.is_file() and not any(name.startswith((".", "_")) for name in part.relative_to(path).parts)
    ]
    return [part for part in found if part.stat().st_size]


def _folder(path: Path, text: Text, quotings: Quotings) -> Table:
    found = part_files(path)
    if not found:
        raise DataError(f"{path.name}: a folder without files of a table")
    return Parts(path, [open_part(path, part, text, quotings) for part in found])


def open_part(path: Path, part: Path, text: Text, quotings: Quotings) -> Table:
    """One file of a folder that is one table, or the file that is the table. Raises DataError."""
    table = open_table(part, text, quotings)
    if part == path:
        return table
    table.name = f"{path.name}/{part.relative_to(path).as_posix()}"
    named = [folder.split("=", 1) for folder in part.relative_to(path).parts[:-1] if "=" in folder]
    return _Partition(table, dict(named)) if named else table


class _Partition(Table):
    """A file whose folders are named column=value: constant columns that the file itself lacks."""

    def __init__(self, table: Table, values: dict[str, str]):
        super().__init__(table.path, (*table.columns, *values), table.name)
        self.table, self.values, self.reading, self.index = table, values, table.reading, table.index

    def batches(self, names: list[str], bad: BadRows):  # type: ignore[no-untyped-def]
        own = [name for name in names if name not in self.values] or [self.table.columns[0]]
        for where, columns in self.table.batches(own, bad):
            by_name = dict(zip(own, columns, strict=True))
            count = len(columns[0])
            batch: Batch = (
                where,
                [by_name[n] if n in by_name else pa.array([self.values[n]] * count, pa.string()) for n in names],
            )
            yield batch


def _looks_like_json(path: Path) -> bool:
    with files.stream(path) as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b'{"', b"[{", b"{'"))
