"""Parquet and Arrow files as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.table import Batch, Table, unambiguous

ROWS = 1 << 20  # of a batch
_DAMAGED = (pa.ArrowException, OSError, ValueError, NotImplementedError, MemoryError, OverflowError)


class ArrowTable(Table):
    """A Parquet file, or an Arrow file or stream (Feather too)."""

    def __init__(self, path: Path, magic: bytes):
        self._parquet, self._stream = magic.startswith(b"PAR1"), not magic.startswith(b"ARROW1")
        self.reading = "Parquet" if self._parquet else "Arrow"
        try:
            schema = pq.read_schema(path) if self._parquet else self._open(path).schema
            names = tuple(schema.names)
        except _DAMAGED as error:
            raise DataError(f"{path.name}: not {self._kind} file: {files.first_line(error)}") from None
        super().__init__(path, unambiguous(path.name, names))
        self.index = _pandas_index(schema)

    @property
    def _kind(self) -> str:
        return "a Parquet" if self._parquet else "an Arrow"

    def batches(self, names: list[str], bad: BadRows) -> Iterator[Batch]:
        start = 0
        try:
            for batch in self._record_batches(list(dict.fromkeys(names))):
                batch.validate(full=True)  # offsets that point outside, text that is none
                columns = [batch.column(name) for name in names]
                yield self._place(start), columns
                start += batch.num_rows
        except _DAMAGED as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.name}: cannot read it as a table: {files.first_line(error)}") from None

    def _record_batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        if self._parquet:
            yield from pq.ParquetFile(self.path).iter_batches(batch_size=ROWS, columns=names)
            return
        reader = self._open(self.path)
        for batch in reader if self._stream else map(reader.get_batch, range(reader.num_record_batches)):
            batch.validate(full=True)  # before a slice of it is taken: an Arrow file is memory as it stands
            for at in range(0, batch.num_rows, ROWS):
                yield batch.slice(at, ROWS).select(names)

    def _open(self, path: Path) -> pa.ipc.RecordBatchStreamReader | pa.ipc.RecordBatchFileReader:
        source = pa.memory_map(str(path))
        return pa.ipc.open_stream(source) if self._stream else pa.ipc.open_file(source)

    def _place(self, start: int):  # type: ignore[no-untyped-def]
        return lambda at: f"{self.name}, row {start + at}"


def _pandas_index(schema: pa.Schema) -> tuple[str, ...]:
    """The columns that pandas added to keep its row labels."""
    try:
        columns = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        return tuple(name for name in columns if isinstance(name, str) and name in schema.names)
    except (KeyError, ValueError, TypeError, RecursionError):
        return tuple(name for name in schema.names if name.startswith("__index_level_"))
