"""Tab files without a header, as Elliot, Cornac and LensKit write them: user, item, rating, timestamp.

One file, or train.tsv, val.tsv and test.tsv; the rating and the time may be missing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from m3dist.data.dataset import DataError
from m3dist.data.importers.common import Source
from m3dist.data.importers.layout import UNSPLIT, find_layout
from m3dist.data.importers.opening import open_table
from m3dist.data.importers.options import ALL, Options, Text
from m3dist.data.importers.reader import read_layout

TAKES = ALL - {"users", "split_column", "header"}


def recognise(src: Path) -> str | None:
    """Why `src` is such a file or folder, or None."""
    layout = find_layout(src, Options.of(split="random", header=None))
    tables = [open_table(path, Text(header=None)) for path in layout.interactions.values()]
    if not all(table.numbered and 2 <= len(table.columns) <= 4 for table in tables):
        return None
    return f"{', '.join(table.name for table in tables)} without a header: user, item, rating, time"


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the file or folder. Raises DataError."""
    options = options or Options.of(**given)
    options = replace(options, text=replace(options.text, header=False))
    layout = find_layout(src, options)
    layout.format = "elliot"
    for path in layout.interactions.values():
        table = open_table(path, options.text)
        if len(table.columns) < 2:
            raise DataError(f"{table.name}: one column, expected user, item and perhaps rating and time")
    if UNSPLIT in layout.interactions and not options.plan.split:
        raise DataError(
            f"{layout.interactions[UNSPLIT].name}: no split; choose --split random, leave-last-out or temporal"
        )
    return read_layout(layout, options)
