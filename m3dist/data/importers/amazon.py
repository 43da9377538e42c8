"""Amazon review dumps: reviews_X_5.json(.gz) with reviewerID and asin, or X.jsonl(.gz) with user_id and parent_asin.

One JSON object a line; a folder may hold meta_X.json(.gz), which gives titles. Old dumps whose lines are Python
literals are read, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.common import Source
from m3dist.data.importers.jsons import SUFFIXES, JsonLines
from m3dist.data.importers.layout import UNSPLIT, Layout, find_features
from m3dist.data.importers.opening import open_table
from m3dist.data.importers.options import ALL, Options
from m3dist.data.importers.reader import read_layout
from m3dist.data.importers.table import ITEM, TITLE, USER, Table

TAKES = ALL - {"users", "split_column", "header", "delimiter", "quote"}


def recognise(src: Path) -> str | None:
    """Why `src` is an Amazon review dump, or None."""
    reviews, _ = _find(src)
    return f"{reviews.name} holds reviews, one a line" if reviews else None


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the dump, a file or its folder. Raises DataError."""
    options = options or Options.of(**given)
    reviews, meta = _find(src)
    if not reviews:
        raise DataError(f"{src.name}: expected JSON lines with reviewerID and asin, or with user_id and parent_asin")
    folder = src if src.is_dir() else None
    taken = {files.real(path) for path in (reviews, meta) if path}
    features = options.files.features or (find_features(folder, taken, options) if folder else {})
    titles = meta if meta and not options.files.items else None
    return read_layout(Layout("amazon", {UNSPLIT: reviews}, options.files.items, features, folder, titles), options)


def _find(src: Path) -> tuple[Path | None, Path | None]:
    """The reviews and the products; None where there is not exactly one file of that kind."""
    if src.is_file():
        return (src if _is_reviews(_opened(src)) else None), None
    found = [path for path in sorted(src.iterdir()) if files.suffix(path) in SUFFIXES] if src.is_dir() else []
    tables = {path: _opened(path) for path in found}
    reviews = [path for path, table in tables.items() if _is_reviews(table)]
    meta = [p for p, t in tables.items() if t and not t.holds(USER) and t.holds(ITEM) and t.pick(None, TITLE)]
    return (reviews[0] if len(reviews) == 1 else None), (meta[0] if len(meta) == 1 else None)


def _opened(path: Path) -> Table | None:
    try:
        table = open_table(path)
    except DataError:
        return None
    return table if isinstance(table, JsonLines) else None


def _is_reviews(table: Table | None) -> bool:
    columns = set(table.columns) if table else set()
    return {"reviewerID", "asin"} <= columns or {"user_id", "parent_asin"} <= columns or {"user_id", "asin"} <= columns
