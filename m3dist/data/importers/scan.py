"""One file of a source by itself, for an engine that reads many at once: its rows go to disk as codes of its own ids,
then into ranges of users. Memory holds the file's distinct ids and one block of rows.

Shapes: V distinct ids of the file, R ranges of users.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3dist.data.dataset import SPLITS
from m3dist.data.importers.catalogue import ItemCodes
from m3dist.data.importers.ids import Ids, RowIds, new_ids
from m3dist.data.importers.interactions import Interactions, Reading, Roles, read_rows
from m3dist.data.importers.layout import UNSPLIT
from m3dist.data.importers.learnt import Learnt, Pass
from m3dist.data.importers.opening import open_part
from m3dist.data.importers.options import Options
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.values import Reread

NAMES = (*SPLITS, UNSPLIT)
_BLOCK = 1 << 22  # rows that a file puts in order of range at once


class Spilled:
    """A column that goes to disk as it grows."""

    def __init__(self, path: Path, dtype: type):
        self._path, self._dtype, self._out = path, dtype, path.open("wb")

    def append(self, values: np.ndarray) -> None:
        self._out.write(np.ascontiguousarray(values, dtype=self._dtype).data)

    def take(self) -> np.ndarray:
        """The values, mapped from the file."""
        self._out.close()
        return mapped(self._path, self._dtype)


def mapped(path: Path, dtype: type) -> np.ndarray:
    """The values of a file that need not hold any."""
    if not path.exists() or not path.stat().st_size:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


@dataclass(frozen=True)
class Unit:
    """One file to scan: the split and the table that it belongs to, what its columns are, the bytes of all files."""

    split: str
    table: Path
    file: Path
    roles: Roles
    held: int


@dataclass(frozen=True)
class Scanned:
    """What a scan found out. reread: it ended early, since what it learnt changes how every file is read.

    count: rows that were read; kept: rows on disk; items_n: how many items rows by position reach; first: whether
    the code 0 of items occurs.
    """

    learnt: Learnt
    bad: BadRows
    reread: bool = False
    count: int = 0
    kept: int = 0
    below: int = 0
    items_n: int = 0
    first: bool = False


def scan(unit: Unit, options: Options, learnt: Learnt, items: tuple[Ids | None, str], folder: Path) -> Scanned:
    """Read one file into `folder`. items: the ids that are known (None: any) and why others are not.

    Raises DataError, as the file would when it is read among all.
    """
    while True:
        kinds = learnt.users.mode, learnt.items.mode, learnt.times.mode
        bad = BadRows(options.rows.on_bad_row == "drop")
        shutil.rmtree(folder, ignore_errors=True)  # of a try that died
        folder.mkdir(parents=True)
        try:
            return _scan(unit, Pass(options, learnt, bad), items, folder)
        except Reread:
            if (learnt.users.mode, learnt.items.mode, learnt.times.mode) != kinds:
                return Scanned(learnt, bad, reread=True)
            learnt.again()  # only this file's quotes were taken for something else


def _scan(unit: Unit, run: Pass, items: tuple[Ids | None, str], folder: Path) -> Scanned:
    ids, unknown = items
    codes = ItemCodes(ids or new_ids(run.learnt.items.mode), run.learnt.items, unknown)
    found = Interactions(new_ids(run.learnt.users.mode), lambda name, dtype: Spilled(folder / name, dtype))
    table = open_part(unit.table, unit.file, run.options.text, run.learnt.quotings)
    count = read_rows(Reading(table, unit.roles, unit.split, unit.held), found, codes, run)
    user_ids, dense = found.users.finish()
    degree, kept, first = np.zeros(len(user_ids), dtype=np.int64), 0, False
    for user, item in found.parts.values():
        u, i = user.take(), item.take()
        kept += len(u)
        for start in range(0, len(u), _BLOCK):
            block = u[start : start + _BLOCK]
            degree += np.bincount(dense[block] if dense is not None else block, minlength=len(degree))
            first = first or bool((i[start : start + _BLOCK] == 0).any())
    if found.times is not None:
        found.times.take()
    _save(folder, "user", user_ids, dense)
    np.save(folder / "user.degree.npy", degree)
    if codes.open:
        _save(folder, "item", *codes.ids.finish())
    items_n = codes.ids.n if isinstance(codes.ids, RowIds) else 0
    return Scanned(run.learnt, run.bad, False, count, kept, found.below, items_n, first)


def _save(folder: Path, what: str, ids: pa.Array, dense: np.ndarray | None) -> None:
    pq.write_table(pa.table({"id": ids}), folder / f"{what}.ids.parquet")
    np.save(folder / f"{what}.dense.npy", dense if dense is not None else np.arange(len(ids), dtype=np.int32))


def number(folder: Path, what: str, ids: Ids) -> np.ndarray:
    """Give a file's distinct users or items codes among those of all files, int32 [V]; kept for `shuffle`."""
    codes = ids.encode(pq.read_table(folder / f"{what}.ids.parquet")["id"].combine_chunks())
    np.save(folder / f"{what}.codes.npy", codes)
    return codes


def shuffle(
    folder: Path, dense: tuple[np.ndarray, np.ndarray | None], bounds: np.ndarray, first_row: int, times: type | None
) -> None:
    """Put a scanned file's rows in order of the ranges that their users are in, rows of a range as they stand.

    dense: dense ids by code of users and items (None: codes of items are dense ids already); bounds: the first user of
    every range and the number of users behind, [R + 1]; first_row: rows of the files before, for the order of rows;
    times: the type of times, which take the place of that order where there are any.
    """
    users, items = (_map(folder, what, ids) for what, ids in zip(("user", "item"), dense, strict=True))
    for name in NAMES:
        user, item = (mapped(folder / f"{name}.{what}", np.int32) for what in ("user", "item"))
        time = mapped(folder / "time", times) if times is not None and name == UNSPLIT else None
        out = [(folder / f"{name}.{what}.by").open("wb") for what in ("user", "item", "time")]
        at, done = [], 0
        for start in range(0, len(user), _BLOCK):
            block = slice(start, start + _BLOCK)
            u = users[user[block]] if users is not None else user[block]
            i = items[item[block]] if items is not None else np.asarray(item[block])
            of = np.searchsorted(bounds, u, side="right") - 1
            order = np.argsort(of, kind="stable")
            when = np.asarray(time[block]) if time is not None else first_row + start + np.arange(len(u))
            for file, values in zip(out, (u, i, when), strict=True):
                file.write(np.ascontiguousarray(values[order]).data)
            counts = np.bincount(of, minlength=len(bounds) - 1)
            at.append(done + np.concatenate([[0], np.cumsum(counts)]))
            done += len(u)
        for file in out:
            file.close()
        np.save(folder / f"{name}.at.npy", np.array(at, dtype=np.int64).reshape(-1, len(bounds)))


def forget(folder: Path) -> None:
    """Delete what only `shuffle` reads."""
    for path in (folder / "time", *(folder / f"{name}.{what}" for name in NAMES for what in ("user", "item"))):
        path.unlink(missing_ok=True)


def _map(folder: Path, what: str, dense: np.ndarray | None) -> np.ndarray | None:
    if dense is None:
        return None
    return dense[np.load(folder / f"{what}.codes.npy")][np.load(folder / f"{what}.dense.npy")]
