"""Arrow tables as notebooks show them, and as text elsewhere; needs no further package."""

from __future__ import annotations

import html
from typing import Any

import pyarrow as pa


class Shown:
    """A table's first rows. A notebook shows `_repr_html_`, a terminal the text."""

    def __init__(self, table: pa.Table, rows: int = 20):
        self.table, self.rows = table, rows

    def cells(self) -> list[list[str]]:
        """The names of columns, then the rows that are shown."""
        columns = [column.to_pylist() for column in self.table.slice(0, self.rows).columns]
        return [[*self.table.column_names], *([_text(x) for x in row] for row in zip(*columns, strict=True))]

    @property
    def left(self) -> str:
        """What is said of the rows that are not shown."""
        more = self.table.num_rows - self.rows
        return f"... {more:,} more rows" if more > 0 else ""

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(cell) for cell in row] for row in self.cells()]
        lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
        return "<table>" + "".join(lines) + "</table>" + (f"<p>{self.left}</p>" if self.left else "")

    def __repr__(self) -> str:
        cells = self.cells()
        width = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, width, strict=True)).rstrip() for row in cells]
        return "\n".join([*lines, *([self.left] if self.left else [])])


def show(table: pa.Table, rows: int = 20) -> Shown:
    """The first rows of a table that a run gave, for a notebook or a terminal."""
    return Shown(table, rows)


def _text(value: Any) -> str:
    """Numbers by four digits, long lists by their beginning."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return "[" + ", ".join(_text(x) for x in value[:3]) + (", ..." if len(value) > 3 else "") + "]"
    return "" if value is None else str(value)
