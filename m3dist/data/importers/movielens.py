"""MovieLens folders: ratings.dat and movies.dat (1M, 10M), u.data and u.item (100K), ratings.csv and movies.csv.

Movies give titles; features by id or by movies' row numbers may lie beside them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.common import Source
from m3dist.data.importers.layout import UNSPLIT, Layout, find_features
from m3dist.data.importers.options import ALL, Options, Text
from m3dist.data.importers.reader import read_layout

TAKES = ALL - {"users", "split_column"}
# ratings, how they are written; movies, how they are written
_KINDS: tuple[tuple[str, Text, str, Text], ...] = (
    ("ratings.dat", Text(False, "::"), "movies.dat", Text(False, "::")),
    ("u.data", Text(False, "\t"), "u.item", Text(False, "|", "none")),
    ("ratings.csv", Text(True, ","), "movies.csv", Text(True, ",")),
)
_OTHERS = ("movies", "u", "tags", "links", "genome-scores", "genome-tags", "users")


def recognise(src: Path) -> str | None:
    """Why `src` is a MovieLens folder, or None."""
    found = _kind(src) if src.is_dir() else None
    return f"{found[0]} and {found[2]}" if found and (src / found[2]).is_file() else None


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the folder. Raises DataError."""
    options = options or Options.of(**given)
    kind = _kind(src) if src.is_dir() else None
    if not kind:
        raise DataError(f"{src.name}: no MovieLens folder; expected {' or '.join(kind[0] for kind in _KINDS)} in it")
    ratings, text, movies, titles_text = src / kind[0], kind[1], src / kind[2], kind[3]
    others = {files.real(path) for path in src.iterdir() if path.stem in _OTHERS or path == ratings}
    features = options.files.features or find_features(src, others, options)
    titles = movies if movies.is_file() and not options.files.items else None
    layout = Layout("movielens", {UNSPLIT: ratings}, options.files.items, features, src, titles, titles_text)
    return read_layout(layout, replace(options, text=text))


def _kind(src: Path) -> tuple[str, Text, str, Text] | None:
    return next((kind for kind in _KINDS if (src / kind[0]).is_file()), None)
