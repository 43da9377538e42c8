"""Tables on disk, read in batches: CSV, TSV and Parquet behind one interface, and typed columns out of them.

Every problem is a DataError that names the file and the line (text) or row (Parquet).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from m3dist.data.dataset import DataError
from m3dist.data.importers.ids import NotIntegers

TEXT_SUFFIXES = (".tsv", ".csv", ".txt", ".inter")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
ROWS = 1 << 20  # of a batch
Where = Callable[[int], str]  # position in a batch -> "train.tsv, line 7"


@dataclass(frozen=True)
class Table:
    """One table: a text file, a Parquet file, or a folder of Parquet files with the same columns."""

    path: Path
    columns: tuple[str, ...]
    delimiter: str | None = None  # None: Parquet
    header: bool = True

    def pick(self, given: str | None, known: tuple[str, ...], what: str, option: str, required: bool = True) -> str:
        """The column to use as `what`: the one given, or the one with a known name; "" where there is none."""
        if given is not None:
            if given not in self.columns:
                raise DataError(f"{self.path.name}: no column {given!r}; it has {', '.join(self.columns)}")
            return given
        for name in known:
            found = [column for column in self.columns if _plain(column) == name]
            if len(found) > 1:
                raise DataError(f"{self.path.name}: columns {' and '.join(found)} both look like {what}; give {option}")
            if found:
                return found[0]
        if required:
            raise DataError(
                f"{self.path.name}: no {what} column among {', '.join(self.columns)} "
                f"(known names: {', '.join(known)}); give {option}"
            )
        return ""

    def where(self, row: int) -> str:
        """How a person finds row `row` (0-based) of the data."""
        if self.delimiter is None:
            return f"{self.path.name}, row {row}"
        return f"{self.path.name}, line {row + 1 + self.header}"

    def batches(self, names: list[str]) -> Iterator[tuple[Where, list[pa.Array]]]:
        """Batches of the named columns, text as strings. Memory holds one batch."""
        start = 0
        try:
            for batch in self._record_batches(list(dict.fromkeys(names))):
                yield _offset(self.where, start), [_flat(batch.column(name)) for name in names]
                start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path.name}: cannot read it as a table: {_line(error)}") from None

    def _record_batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        if self.delimiter is None:
            for part in _parts(self.path):
                yield from pq.ParquetFile(part).iter_batches(batch_size=ROWS, columns=names)
            return
        # one thread, so that a parse error knows its row
        with pacsv.open_csv(
            self.path,
            read_options=pacsv.ReadOptions(
                use_threads=False,
                block_size=1 << 24,
                column_names=None if self.header else list(self.columns),
            ),
            parse_options=pacsv.ParseOptions(delimiter=self.delimiter),
            convert_options=pacsv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(self.columns, pa.string())
            ),
        ) as reader:
            yield from reader


def open_table(path: Path, header: bool = True) -> Table:
    """Look at a table's columns. Without a header the columns of a text file are named 1, 2, 3, ..."""
    if not path.exists():
        raise DataError(f"{path.name}: no such file")
    if path.suffix == ".parquet":
        try:
            schemas = [pq.read_schema(part) for part in _parts(path)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path.name}: not a Parquet file: {_line(error)}") from None
        return _unambiguous(Table(path, tuple(schemas[0].names)))
    if path.is_dir() or path.suffix not in TEXT_SUFFIXES:
        raise DataError(f"{path.name}: expected a table, one of {', '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(1 << 16).rstrip("\r\n")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path.name}: cannot read it as UTF-8 text: {_line(error)}") from None
    if not first:
        raise DataError(f"{path.name}: is empty or starts with an empty line; expected a header line")
    delimiter = max("\t,;|", key=first.count)
    names = next(csv.reader([first], delimiter=delimiter))
    if not header:
        names = [str(i + 1) for i in range(len(names))]
    elif all(_is_number(name) for name in names):
        raise DataError(
            f"{path.name}: the first line holds only numbers, expected column names; add a header line, "
            "or use --no-header with columns named 1, 2, ..."
        )
    return _unambiguous(Table(path, tuple(names), delimiter, header))


def find_table(folder: Path, stems: tuple[str, ...]) -> Path | None:
    """The one table in `folder` with one of these stems."""
    found = [folder / (stem + suffix) for stem in stems for suffix in SUFFIXES if (folder / (stem + suffix)).exists()]
    if len(found) > 1:
        raise DataError(f"{folder.name}: holds both {found[0].name} and {found[1].name}; keep one")
    return found[0] if found else None


def id_column(array: pa.Array, kind: str, as_strings: bool, where: Where) -> pa.Array:
    """Ids as int64, or as strings where some id of this kind is not an integer (raises NotIntegers to say so)."""
    _refuse_missing(array, f"{kind} id", where)
    if pa.types.is_string(array.type):
        if as_strings:
            return array
        try:
            integers = pc.cast(array, pa.int64())
            # "007" is a name, not the number 7
            odd = np.flatnonzero(pc.not_equal(pc.cast(integers, pa.string()), array).to_numpy(zero_copy_only=False))
            at = int(odd[0]) if len(odd) else -1
        except pa.ArrowInvalid:
            at = _failure(array, pa.int64())
        if at >= 0:
            raise NotIntegers(kind, where(at), array[at].as_py())
        return integers
    if not pa.types.is_integer(array.type) and not pa.types.is_floating(array.type):
        raise DataError(f"{where(0)}: {kind} ids must be integers or strings, got {array.type}")
    try:
        integers = pc.cast(array, pa.int64())
    except pa.ArrowInvalid:
        at = _failure(array, pa.int64())
        raise DataError(f"{where(at)}: {kind} id {array[at].as_py()!r} is not a 64-bit integer") from None
    return pc.cast(integers, pa.string()) if as_strings else integers


def number_column(array: pa.Array, what: str, where: Where) -> np.ndarray:
    """float64 [b]; refuses what is missing, not a number, or NaN."""
    _refuse_missing(array, what, where)
    try:
        numbers = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        at = _failure(array, pa.float64())
        raise DataError(f"{where(at)}: {what} {array[at].as_py()!r} is not a number") from None
    bad = np.flatnonzero(np.isnan(numbers))
    if len(bad):
        raise DataError(f"{where(int(bad[0]))}: {what} is NaN, expected a number")
    return numbers


def time_column(array: pa.Array, where: Where) -> np.ndarray:
    """float64 [b] that orders as the times do: numbers, timestamps, dates, or ISO 8601 text."""
    _refuse_missing(array, "time", where)
    iso = pa.types.is_string(array.type) and not _is_number(array[0].as_py())
    if not iso and not pa.types.is_temporal(array.type):
        return number_column(array, "time", where)
    try:
        # microseconds, which float64 holds exactly until the year 2255
        times = pc.cast(array, pa.timestamp("us"), safe=False)
    except pa.ArrowInvalid:
        at = _failure(array, pa.timestamp("us"))
        raise DataError(
            f"{where(at)}: time {array[at].as_py()!r} is neither a number nor an ISO 8601 date like those before it"
        ) from None
    return times.to_numpy(zero_copy_only=False).astype("datetime64[us]").astype(np.int64).astype(np.float64)


def _offset(where: Where, start: int) -> Where:
    return lambda at: where(start + at)


def _flat(array: pa.Array) -> pa.Array:
    """Dictionary-encoded and large strings as plain ones."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return pc.cast(array, pa.string()) if pa.types.is_large_string(array.type) else array


def _refuse_missing(array: pa.Array, what: str, where: Where) -> None:
    missing = pc.is_null(array)
    if pa.types.is_string(array.type):
        missing = pc.or_kleene(missing, pc.equal(array, ""))
    at = np.flatnonzero(missing.to_numpy(zero_copy_only=False))
    if len(at):
        raise DataError(f"{where(int(at[0]))}: the {what} is missing")


def _failure(array: pa.Array, to: pa.DataType) -> int:
    """Position of the first value that does not cast, found by halving: a cast at a time."""
    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pc.cast(array[low:middle], to)
            low = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            high = middle
    return low


def _parts(path: Path) -> list[Path]:
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise DataError(f"{path.name}: a folder without .parquet files")
    return parts


def _unambiguous(table: Table) -> Table:
    doubled = [name for name in table.columns if table.columns.count(name) > 1]
    if doubled:
        raise DataError(f"{table.path.name}: column {doubled[0]!r} stands twice in the header")
    return table


def _plain(column: str) -> str:
    """userID, user_id and user_id:token are all `userid`."""
    return column.split(":")[0].replace("_", "").replace(" ", "").lower()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
