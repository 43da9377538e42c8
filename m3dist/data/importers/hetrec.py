"""HetRec 2011 folders: Last.fm (user_artists.dat, artists.dat) and MovieLens with IMDb (user_ratedmovies.dat).

Tab-separated with a header. Artists and movies give titles; --threshold looks at the weight or rating.
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
_KINDS = (
    ("user_artists.dat", "artists.dat"),
    ("user_ratedmovies-timestamps.dat", "movies.dat"),
    ("user_ratedmovies.dat", "movies.dat"),
)
_TEXT = Text(True, "\t", "none")


def recognise(src: Path) -> str | None:
    """Why `src` is a HetRec folder, or None."""
    return next((kind[0] for kind in _KINDS if (src / kind[0]).is_file()), None) if src.is_dir() else None


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the folder. Raises DataError."""
    options = options or Options.of(**given)
    kind = next((kind for kind in _KINDS if (src / kind[0]).is_file()), None)
    if not kind:
        raise DataError(f"{src.name}: no HetRec folder; expected {' or '.join(kind[0] for kind in _KINDS)} in it")
    interactions, titles = src / kind[0], src / kind[1]
    features = options.files.features or find_features(src, {files.real(p) for p in src.glob("*.dat")}, options)
    use = titles if titles.is_file() and not options.files.items else None
    layout = Layout("hetrec", {UNSPLIT: interactions}, options.files.items, features, src, use, _TEXT)
    return read_layout(layout, replace(options, text=_TEXT))
