"""What features are made of: pictures and sounds in a folder, named by item id, and texts of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from m3dist.data.dataset import DataError
from m3dist.data.importers import names
from m3dist.data.importers.opening import open_table
from m3dist.data.importers.options import Text
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.table import Role

SUFFIXES = {
    "images": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
}
ID = Role("item id", names.IDS, "--id-column")
TEXT = Role("text", ("text", "description", *names.TITLE), "--text-column")


@dataclass(frozen=True)
class Thing:
    """An item's picture, sound or text. what: the path of its file, or the text; name: how messages call it."""

    id: str
    what: str
    name: str


def of_folder(kind: str, root: Path) -> list[Thing]:
    """The files of a folder and of those below it; the id is a file's name without its suffix. Raises DataError."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected files named by item id, such as B001{SUFFIXES[kind][0]}")
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in SUFFIXES[kind] or not path.is_file():
            continue
        if path.stem in found:
            raise DataError(f"{path}: and {found[path.stem]} are both of item {path.stem}; keep one of them")
        found[path.stem] = path
    if not found:
        raise DataError(f"{root}: no {kind}; expected files of {' '.join(SUFFIXES[kind])}, named by item id")
    return [Thing(key, str(path), path.name) for key, path in sorted(found.items())]


def of_table(path: Path, id_column: str | None, text_column: str | None) -> list[Thing]:
    """The texts of a table of any kind, in its order. Raises DataError, also where an item stands twice."""
    if not path.exists():
        raise DataError(f"{path}: no such file; expected a table of item ids and texts")
    table = open_table(path, Text())
    columns = [table.pick(id_column, ID), table.pick(text_column, TEXT)]
    out: list[Thing] = []
    for _, batch in table.batches(columns, BadRows()):
        ids, texts = (column.cast(pa.string()).to_pylist() for column in batch)
        out += [Thing(x or "", text or "", f"item {x}") for x, text in zip(ids, texts, strict=True)]
    seen: set[str] = set()
    for thing in out:
        if not thing.id or thing.id in seen:
            raise DataError(f"{path}: item {thing.id!r} stands twice or has no id; expected one row an item")
        seen.add(thing.id)
    if not out:
        raise DataError(f"{path}: no rows; expected a table of item ids and texts")
    return out


def fingerprint(things: list[Thing]) -> str:
    """Of the ids and texts, and of the files' names, sizes and times."""
    digest = hashlib.sha256()
    for part in _parts(things):
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _parts(things: list[Thing]) -> Iterator[str]:
    for thing in things:
        yield thing.id
        yield thing.what
        if thing.name != f"item {thing.id}":
            stat = Path(thing.what).stat()
            yield f"{stat.st_size} {stat.st_mtime_ns}"
