"""CSV, TSV, JSON lines, Parquet or Arrow: a file, a folder that is one table, or a folder of tables.

A folder holds train, val and test tables or one table of interactions; optionally an items table, features
(visual_x.npy is modality `visual`) and has_visual.npy. Row i of features by position is item i, or row i of the
items table; features with ids are joined by them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m3dist.data.importers.common import Source
from m3dist.data.importers.layout import UNSPLIT, find_layout
from m3dist.data.importers.options import ALL, Options
from m3dist.data.importers.reader import read_layout

TAKES = ALL - {"users"}


def recognise(src: Path) -> str | None:
    """Why `src` is what this importer reads, or None."""
    layout = find_layout(src, Options.of(split="random"))
    if UNSPLIT in layout.interactions:
        return f"{layout.interactions[UNSPLIT].name} is a table of interactions"
    return f"tables of train, val and test: {', '.join(path.name for path in layout.interactions.values())}"


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the tables at `src`, a file or a folder. Raises DataError."""
    options = options or Options.of(**given)
    return read_layout(find_layout(src, options), options)
