"""Importers: published layouts of multimedia recommendation data to one canonical data set.

An importer is a module with a docstring (the command's help), `TAKES` (the options that it takes, see options.py),
`recognise(src)` (why a folder or file is in its layout, or None) and `read(src, options)` (a `common.Source`).
Adding one is that file and its line below. `common.write` makes the data set. Nothing that is read can run code.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from m3dist.data.importers.common import Source
    from m3dist.data.importers.options import Options

IMPORTERS = {  # name: module, in the order in which `auto` asks them
    "recbole": "m3dist.data.importers.recbole",
    "mmrec": "m3dist.data.importers.mmrec",
    "invrl": "m3dist.data.importers.invrl",
    "movielens": "m3dist.data.importers.movielens",
    "hetrec": "m3dist.data.importers.hetrec",
    "amazon": "m3dist.data.importers.amazon",
    "elliot": "m3dist.data.importers.elliot",
    "scipy": "m3dist.data.importers.matrices",
    "tables": "m3dist.data.importers.tables",
}


class Importer(Protocol):
    """What every module of IMPORTERS offers."""

    TAKES: frozenset[str]

    def recognise(self, src: Path) -> str | None: ...
    def read(self, src: Path, options: Options) -> Source: ...


def importer(name: str) -> Importer:
    """The importer of a name of IMPORTERS."""
    return importlib.import_module(IMPORTERS[name])  # type: ignore[return-value]


def recognise(src: Path) -> tuple[str, str]:
    """The first importer whose layout `src` is in, and why. Raises DataError, which says what the last one missed."""
    from m3dist.data.dataset import DataError

    if not src.exists():
        raise DataError(f"{src}: no such file or folder")
    missed = ""
    for name in IMPORTERS:
        try:
            why = importer(name).recognise(src)
        except DataError as error:
            missed = str(error)
        else:
            if why:
                return name, why
    raise DataError(f"{src.name}: in no known layout ({', '.join(IMPORTERS)}); as tables: {missed}")
