"""RecBole folders: NAME.inter, or NAME.train.inter, NAME.valid.inter and NAME.test.inter; and NAME.item.

Columns are typed (user_id:token); the item file gives titles. Cells are never quoted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.common import Source
from m3dist.data.importers.layout import UNSPLIT, Layout, find_features
from m3dist.data.importers.opening import open_table
from m3dist.data.importers.options import ALL, Options, Text
from m3dist.data.importers.reader import read_layout
from m3dist.data.importers.table import TITLE

TAKES = ALL - {"users"}
_ENDS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}


def recognise(src: Path) -> str | None:
    """Why `src` is a RecBole folder, or None."""
    if not src.is_dir() or not list(src.glob("*.inter")):
        return None
    found = _interactions(src)
    typed = all(":" in open_table(path).columns[0] for path in found.values())
    return f"{' and '.join(path.name for path in found.values())} with typed columns" if typed else None


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the folder. Raises DataError."""
    options = options or Options.of(**given)
    if not src.is_dir():
        raise DataError(f"{src}: expected a RecBole folder")
    interactions = _interactions(src)
    items = sorted(src.glob("*.item"))
    taken = {files.real(path) for path in (*interactions.values(), *items, *src.glob("*.user"))}
    features = options.files.features or find_features(src, taken, options)
    text = replace(options.text, quote=options.text.quote or "none", delimiter=options.text.delimiter or "\t")
    titles = None
    if not options.files.items and len(items) == 1 and open_table(items[0], text).pick(None, TITLE):
        titles = items[0]
    layout = Layout("recbole", interactions, options.files.items, features, src, titles, Text(quote="none"))
    return read_layout(layout, replace(options, text=text))


def _interactions(src: Path) -> dict[str, Path]:
    found = sorted(src.glob("*.inter"))
    splits = {
        split: path for split, ends in _ENDS.items() for path in found if path.name.split(".")[-2].lower() in ends
    }
    if len(splits) == 3:
        return splits
    if len(found) == 1:
        return {UNSPLIT: found[0]}
    raise DataError(
        f"{src.name}: expected one .inter file, or .train.inter, .valid.inter and .test.inter, found "
        f"{', '.join(path.name for path in found) or 'none'}"
    )
