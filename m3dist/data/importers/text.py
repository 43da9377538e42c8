"""Delimited text: CSV, TSV and their kin, in blocks of whole rows.

Arrow's parser reads a block; Python's mends the blocks whose rows differ in length. Both open a quoted field only at
its start. Values are strings, exactly as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.names import listed
from m3dist.data.importers.options import Text
from m3dist.data.importers.quotes import Ends, Quoting, line_breaks, row_ends
from m3dist.data.importers.rows import BadRows, Where
from m3dist.data.importers.sniff import LONGEST, SAID, Decoder, reader, sniff
from m3dist.data.importers.table import Batch, Table, unambiguous
from m3dist.data.importers.values import Reread

BLOCK = 1 << 24
_UNIT = "\x1f"  # stands for separators of several characters


class TextTable(Table):
    """A file of delimited text. `quoting` learns from what is read; Reread says that it did."""

    def __init__(self, path: Path, text: Text, quoting: Quoting | None = None):
        d = sniff(path, text)
        super().__init__(path, unambiguous(path.name, d.columns))
        self.dialect, self.headed, self.numbered = d, d.header, not d.header
        if quoting is None:
            quoting = Quoting()
        if text.quote:
            quoting.mode, quoting.given = text.quote, True
        elif d.delimiter == " " or len(d.delimiter) > 1:
            quoting.mode = "none"
        if quoting.mode != "none" and len(d.delimiter) > 1:
            raise DataError(f"--quote {text.quote}: a separator of several characters ({d.delimiter!r}) has no quoting")
        self.quoting = quoting
        self._mark = d.delimiter if len(d.delimiter) == 1 and d.delimiter != " " else _UNIT
        self._positions = {name: str(i) for i, name in enumerate(self.columns)}

    @property
    def reading(self) -> str:  # type: ignore[override]
        d = self.dialect
        out = [
            f"separated by {SAID.get(d.delimiter, repr(d.delimiter))}",
            "header" if d.header else "no header",
            "" if d.encoding == "utf-8" else d.encoding,
            f"{d.comments} comment lines" if d.comments else "",
            f"quotes are text ({self.quoting.why})" if self.quoting.mode == "none" and self.quoting.why else "",
            files.compression(self.path),
        ]
        return ", ".join(part for part in out if part)

    def batches(self, names: list[str], bad: BadRows) -> Iterator[Batch]:
        wanted = [self._positions[name] for name in names]
        plain, torn = "", 0
        with files.stream(self.path) as file:
            for data, line, ends in self._blocks(Decoder(file, self.dialect.encoding)):
                torn += ends.torn
                if ends.plain >= 0 and not plain:
                    plain = _line(data, line, ends.plain)
                yield from self._rows(data, line, wanted, bad)
        if plain and not torn and self.dialect.delimiter == "\t" and not self.quoting.given:
            # every line is a whole row of a table that is not quoted
            self.quoting.mode, self.quoting.why = "none", f"the one at {plain} spans lines that are whole rows"
            raise Reread()

    def _blocks(self, source: Decoder) -> Iterator[tuple[bytes, int, Ends]]:
        """Blocks of whole rows, the number of their first line, and what their quotes say."""
        skip, line, rest, more = self.dialect.skip, self.dialect.line + 1, b"", True
        limit = LONGEST if files.compression(self.path) else max(LONGEST, self.path.stat().st_size)
        while more:
            try:
                block = source.read(max(BLOCK, len(rest)))
            except UnicodeDecodeError as error:
                raise self._not_text(f"near line {line}: {error}") from None
            more = bool(block)
            data = rest + block[skip:]
            skip = max(0, skip - len(block))
            if not data:
                continue
            ends = row_ends(data, self.quoting.mode, self._mark, len(self.columns), final=not more)
            self._check_quotes(ends, data, line)
            if not ends.cut and len(data) > limit:
                raise DataError(f"{self.name}, line {line}: a row of more than {limit:,} bytes")
            if ends.cut:
                yield data[: ends.cut], line, ends
                line += data.count(b"\n", 0, ends.cut)
            rest = data[ends.cut :]

    def _check_quotes(self, ends: Ends, data: bytes, line: int) -> None:
        """Take the file's quotes for what they turn out to be, and read it again. Raises Reread, or DataError."""
        quoting, endless = self.quoting, not ends.cut and len(data) > LONGEST
        where = _line(data, line, max(ends.opened, 0))
        if quoting.given and ends.opened >= 0 > ends.malformed:
            raise DataError(f"{self.name}, {where}: a quote opens and never closes")
        if quoting.given or quoting.mode == "none" or (ends.opened < 0 and not endless):
            return
        before = data[max(ends.malformed - 1, 0) : max(ends.malformed, 0)]
        quoting.mode = "backslash" if before == b"\\" and quoting.mode == "double" else "none"
        quoting.why = f"the one at {where} does not close where a field ends"
        raise Reread()

    def _rows(self, data: bytes, line: int, wanted: list[str], bad: BadRows) -> Iterator[Batch]:
        """The rows of a block as one batch."""
        if self._mark == _UNIT:
            if _UNIT.encode() in data:
                raise self._not_text("holds the control character 0x1f")
            if self.dialect.delimiter == " ":
                data = re.sub(rb"[ \t]+", _UNIT.encode(), re.sub(rb"(?m)^[ \t]+|[ \t]+$", b"", data))
            else:
                data = data.replace(self.dialect.delimiter.encode(), _UNIT.encode())
        ragged = False

        def skip(row: pacsv.InvalidRow) -> str:
            nonlocal ragged
            ragged = True
            return "skip"

        mode = self.quoting.mode
        try:
            table = pacsv.read_csv(
                pa.py_buffer(data),
                read_options=pacsv.ReadOptions(
                    use_threads=False,
                    block_size=len(data) + 1,
                    column_names=[*self._positions.values()],
                ),
                parse_options=pacsv.ParseOptions(
                    delimiter=self._mark,
                    quote_char=False if mode == "none" else "'" if mode == "single" else '"',
                    double_quote=mode != "backslash",
                    escape_char="\\" if mode == "backslash" else False,
                    newlines_in_values=mode != "none",
                    invalid_row_handler=skip,
                ),
                convert_options=pacsv.ConvertOptions(
                    include_columns=list(dict.fromkeys(wanted)),
                    column_types=dict.fromkeys(wanted, pa.string()),
                    null_values=[],
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._undecodable(data, line, error) from None
        if ragged:
            yield from self._mended(data, line, wanted, bad)
        elif table.num_rows:
            columns = [table[name].combine_chunks() for name in wanted]
            yield self._where(data, line), columns

    def _where(self, data: bytes, line: int) -> Where:
        """Rows of a block to lines, counted only when somebody asks."""
        mode = self.quoting.mode

        def where(at: int) -> str:
            ends = np.append(line_breaks(data, mode, self._mark), len(data))
            starts = np.concatenate([[0], ends[:-1] + 1])
            return f"{self.name}, {_line(data, line, int(starts[ends > starts][at]))}"  # empty lines are no rows

        return where

    def _mended(self, data: bytes, line: int, wanted: list[str], bad: BadRows) -> Iterator[Batch]:
        """A block whose rows differ in length: empty cells behind a row are nothing, other rows are bad."""
        width = len(self.columns)
        lines: list[int] = []
        out: list[list[str]] = [[] for _ in wanted]
        rows = reader(
            data.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n"), self._mark, self.quoting.mode
        )
        start = 0
        for row in rows:
            here, start = line + start, rows.line_num  # type: ignore[attr-defined]
            if len(row) < 2 and not "".join(row).strip():
                continue  # an empty line
            if len(row) < width or any(cell.strip() for cell in row[width:]):
                self._refuse(row, here, bad)
                continue
            lines.append(here)
            for column, name in zip(out, wanted, strict=True):
                column.append(row[int(name)])
        if not lines:
            return
        try:
            yield (lambda at: f"{self.name}, line {lines[at]}"), [pa.array(column, pa.string()) for column in out]
        except UnicodeEncodeError as error:
            raise self._not_text(files.first_line(error)) from None

    def _refuse(self, row: list[str], line: int, bad: BadRows) -> None:
        where, width = f"{self.name}, line {line}", len(self.columns)
        if row[0].startswith(("#", "%")):
            bad.add("comments", 1, where)
            return
        why = f" (quotes are taken as text: {self.quoting.why}; --quote double takes them as quoting)"
        names = listed(self.columns if self.dialect.header else [repr(cell[:60]) for cell in row])
        bad.refuse(
            "another number of cells",
            where,
            f"{len(row)} cells, expected {width} ({names})"
            f"{why if self.quoting.why and not self.quoting.given else '; --delimiter names another separator'}",
        )

    def _undecodable(self, data: bytes, line: int, error: Exception) -> DataError:
        for number, text in enumerate(data.split(b"\n")):
            try:
                text.decode()
            except UnicodeDecodeError as wrong:
                return self._not_text(f"line {line + number}: byte 0x{text[wrong.start]:02x}")
        return DataError(f"{self.name}: cannot be read as a table ({files.first_line(error)})")

    def _not_text(self, why: str) -> DataError:
        return DataError(
            f"{self.name}: is not text in {self.dialect.encoding} ({why}); if it is Western European text, say "
            "--encoding latin-1"
        )


def _line(data: bytes, first: int, at: int) -> str:
    """The line of a position in a block whose first line is known."""
    breaks = data.count(b"\n", 0, at)
    return f"line {first + breaks}"
