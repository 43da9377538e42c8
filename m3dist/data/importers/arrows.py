"""Parquet and Arrow files as tables."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.table import Batch, Table, unambiguous

ROWS = 1 << 20  # of a batch
_BATCH = 32 << 20  # bytes of a batch, or one row
_DELTAS = 1 << 14  # rows of a batch with text of which only the ends are stored
_RATIO = 10  # bytes that a byte of a file may stand for in one of its batches
_DAMAGED = (pa.ArrowException, OSError, ValueError, NotImplementedError, MemoryError, OverflowError)


class ArrowTable(Table):
    """A Parquet file, or an Arrow file or stream (Feather too)."""

    def __init__(self, path: Path, magic: bytes):
        self._parquet, self._stream = magic.startswith(b"PAR1"), not magic.startswith(b"ARROW1")
        self.reading = "Parquet" if self._parquet else "Arrow"
        try:
            if self._parquet:
                with _bounded(path):
                    self._meta = pq.read_metadata(path)
                    schema = pq.read_schema(path)
                files.need_backing(
                    path, max((c.total_uncompressed_size for c in self._chunks()), default=0), "a column"
                )
            else:
                schema = self._open(path).schema
            names = tuple(schema.names)
        except _DAMAGED as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path.name}: not {self._kind} file: {files.first_line(error)}") from None
        self._schema = schema
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
                for part in _narrowed(batch):
                    yield self._place(start), [part.column(name) for name in names]
                    start += part.num_rows
        except _DAMAGED as error:
            if isinstance(error, DataError):
                raise
            if isinstance(error, MemoryError):
                raise DataError(
                    f"{self.name}: a batch of it would take much more memory than the file is worth: it is damaged, or "
                    "not what it seems; if it is right, store it uncompressed"
                ) from None
            raise DataError(f"{self.name}: cannot read it as a table: {files.first_line(error)}") from None

    def _record_batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        if self._parquet:
            yield from self._next_ones(self._parquet_batches(names))
            return
        reader = self._open(self.path)
        batches = iter(reader if self._stream else map(reader.get_batch, range(reader.num_record_batches)))
        for batch in self._next_ones(batches):
            batch.validate(full=True)  # before a slice of it is taken: an Arrow file is memory as it stands
            for at in range(0, batch.num_rows, ROWS):
                yield batch.slice(at, ROWS).select(names)

    def _next_ones(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Every batch, each read within bounds: it may be compressed, and what is said of its size may be wrong."""
        while True:
            with _bounded(self.path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _parquet_batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        # text as it stands in the file, each once: a small file may stand for much of it
        text = {field.name for field in self._schema if _is_text(field.type)} & {*names}
        deltas = {_top(c) for c in self._chunks() if "DELTA_BYTE_ARRAY" in c.encodings}  # can only be read as it is
        with pq.ParquetFile(self.path, read_dictionary=sorted(text - deltas), pre_buffer=False) as file:
            rows = self._rows(names) if deltas.isdisjoint(names) else min(_DELTAS, self._rows(names))
            yield from file.iter_batches(batch_size=rows, columns=names, use_threads=False)

    def _chunks(self) -> Iterator[pq.ColumnChunkMetaData]:
        """Every column of every row group."""
        for at in range(self._meta.num_row_groups):
            group = self._meta.row_group(at)
            yield from map(group.column, range(group.num_columns))

    def _open(self, path: Path) -> pa.ipc.RecordBatchStreamReader | pa.ipc.RecordBatchFileReader:
        source, options = pa.memory_map(str(path)), pa.ipc.IpcReadOptions(use_threads=False)
        # of the system's memory, which `bounded` can limit
        open_, pool = pa.ipc.open_stream if self._stream else pa.ipc.open_file, pa.system_memory_pool()
        return open_(source, options=options, memory_pool=pool)

    def _rows(self, names: list[str]) -> int:
        """Rows of a batch of these columns of a Parquet file, by how many values and bytes a row of it has."""
        values = size = 0
        for at in range(self._meta.num_row_groups):
            group = self._meta.row_group(at)
            held = [c for c in map(group.column, range(group.num_columns)) if _top(c) in names]
            count = max(1, group.num_rows)
            values = max(values, sum(c.num_values for c in held) // count)
            size = max(size, sum(c.total_uncompressed_size for c in held) // count)
        files.need_backing(self.path, 8 * values, "a row of it")
        return max(1, min(ROWS, _BATCH // max(8, 8 * values, size)))

    def _place(self, start: int):  # type: ignore[no-untyped-def]
        return lambda at: f"{self.name}, row {start + at}"


@contextlib.contextmanager
def _bounded(path: Path) -> Iterator[None]:
    """`files.bounded`, with Arrow's memory taken from the system, where the bounds hold."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        with files.bounded(path, _RATIO):
            yield
    finally:
        pa.set_memory_pool(before)


def _top(chunk: pq.ColumnChunkMetaData) -> str:
    """The column of the table that a chunk belongs to."""
    return chunk.path_in_schema.partition(".")[0]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def _narrowed(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in parts whose text, written out, is not larger than a batch should be; one row is at least a part."""
    widths = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        kind = column.type
        if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
            each = pc.binary_length(column.dictionary).take(column.indices)
        elif _is_text(kind):
            each = pc.binary_length(column)
        else:
            continue
        widths += each.fill_null(0).to_numpy(zero_copy_only=False)
    if not len(widths) or widths.sum() <= _BATCH:
        yield batch
        return
    ends, start = np.cumsum(widths), 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _BATCH, side="right")))
        yield batch.slice(start, end - start)
        start = end


def _pandas_index(schema: pa.Schema) -> tuple[str, ...]:
    """The columns that pandas added to keep its row labels."""
    try:
        columns = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        return tuple(name for name in columns if isinstance(name, str) and name in schema.names)
    except (KeyError, ValueError, TypeError, RecursionError):
        return tuple(name for name in schema.names if name.startswith("__index_level_"))
