"""Reads tables of interactions into codes of users and items, by split.

Shapes: b rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers import files, names
from m3dist.data.importers import splits as sp
from m3dist.data.importers.catalogue import ItemCodes
from m3dist.data.importers.ids import Column, Growing, Ids, StringIds
from m3dist.data.importers.layout import UNSPLIT
from m3dist.data.importers.learnt import Pass
from m3dist.data.importers.rows import BadRows, Rows, Where
from m3dist.data.importers.table import ITEM, RATING, SPLIT, TIME, USER, Table
from m3dist.data.importers.times import time_column
from m3dist.data.importers.values import id_column, label_column, number_column


@dataclass(frozen=True)
class Roles:
    """The columns of one table; "" where a role has none."""

    user: str
    item: str
    rating: str = ""
    time: str = ""
    label: str = ""

    def columns(self) -> dict[str, str]:
        return {role: name for role, name in vars(self).items() if name}

    def said(self) -> str:
        return ", ".join(f"{role} = {name!r}" for role, name in self.columns().items())


@dataclass
class Interactions:
    """What the tables hold: codes by split (or "all"), and times of the unsplit ones.

    below: interactions under the rating threshold; time_name: the column of the times; column: makes an empty one.
    """

    users: Ids
    column: Callable[[str, type], Column] = lambda name, dtype: Growing(dtype)
    parts: dict[str, tuple[Column, Column]] = field(init=False)
    times: Column | None = None
    below: int = 0
    time_name: str = ""

    def __post_init__(self) -> None:
        self.parts = {
            split: (self.column(f"{split}.user", np.int32), self.column(f"{split}.item", np.int32))
            for split in (*SPLITS, UNSPLIT)
        }


def roles_of(table: Table, split: str, run: Pass) -> Roles:
    """Which column of a table is what, checked against what the options ask for."""
    o, plan, columns = run.options, run.options.plan, run.options.columns
    given = {"user": columns.user_column, "item": columns.item_column}
    rating, time = columns.rating_column, columns.time_column
    if table.numbered:  # user, item, rating, time, as such files nearly always have
        given = {"user": given["user"] or "1", "item": given["item"] or "2"}
        rating = rating or ("3" if "3" in table.columns else None)
        time = time or ("4" if "4" in table.columns else None)
    user, item = table.pick(given["user"], USER), table.pick(given["item"], ITEM)
    if user == item:
        raise DataError(f"{table.name}: column {user!r} is user and item; give --user-column and --item-column")
    label = _label(table, split, run)
    if o.rows.threshold is None and columns.rating_column is not None:
        raise DataError("--rating-column without --threshold: say from which rating on an interaction counts")
    rating_name = table.pick(rating, RATING) if o.rows.threshold is not None else ""
    time_name = table.pick(time, TIME) if plan.needs_times else ""
    return Roles(user, item, rating_name, time_name, label)


def _label(table: Table, split: str, run: Pass) -> str:
    """The column that says train, val or test; "" where the files or the plan do."""
    plan, given = run.options.plan, run.options.columns.split_column
    if split != UNSPLIT:
        if plan.split or given:
            raise DataError(f"{table.name}: train, val and test are split already; leave --split out")
        return ""
    label = table.pick(given, SPLIT)
    if label and plan.split:
        raise DataError(f"{table.name}: has a split column, {label!r}; leave --split out")
    if not label and not plan.split:
        raise DataError(
            f"{table.name}: no split: no column says train, val or test (--split-column), so choose "
            f"--split {' or '.join(sp.STRATEGIES)}"
        )
    return label


def read_interactions(table: Table, split: str, out: Interactions, items: ItemCodes, run: Pass) -> None:
    """Append the rows of one table to `out`. Raises DataError, and Reread."""
    roles = roles_of(table, split, run)
    run.readings[table.name] = f"{table.reading}; {roles.said()}"
    out.time_name = roles.time
    count = read_rows(Reading(table, roles, split, held(table)), out, items, run)
    need_rows(count, table.name, run.bad)


def held(table: Table) -> int:
    """Bytes of a table's files."""
    return sum(path.stat().st_size for path in table.files())


def need_rows(count: int, name: str, bad: BadRows) -> None:
    """Raises DataError where a table has no rows."""
    if not count and not bad.counts:
        raise DataError(f"{name}: no interactions")


@dataclass(frozen=True)
class Reading:
    """A table, or one file of it, its columns, the split it belongs to, and the bytes that all its files have."""

    table: Table
    roles: Roles
    split: str
    held: int


def read_rows(given: Reading, out: Interactions, items: ItemCodes, run: Pass) -> int:
    """Append the rows of one table to `out`; how many it has. Raises DataError, and Reread."""
    table, roles, held = given.table, given.roles, given.held
    count, text = 0, -_text(out, items)
    for where, batch in table.batches(list(roles.columns().values()), run.bad):
        if run.options.preview:
            if count >= run.options.preview:
                break
            batch = [column[: run.options.preview - count] for column in batch]
        if not len(batch[0]):
            continue
        count += len(batch[0])
        files.need_backing(table.path, 8 * count, "its interactions", held)
        columns = dict(zip(roles.columns(), batch, strict=True))
        _read_batch(_Batch(table, roles, columns, where), given.split, out, items, run)
        files.need_backing(table.path, 4 * (text + _text(out, items)), "its ids", held)
    return count


def _text(found: Interactions, items: ItemCodes) -> int:
    """Bytes of the distinct ids so far that are text."""
    return sum(ids.bytes for ids in (found.users, items.ids) if isinstance(ids, StringIds))


@dataclass
class _Batch:
    table: Table
    roles: Roles
    columns: dict[str, pa.Array]
    where: Where


def _read_batch(batch: _Batch, split: str, out: Interactions, items: ItemCodes, run: Pass) -> None:
    columns, where = batch.columns, batch.where
    rows = Rows(len(columns["user"]), where, run.bad)
    _refuse_headers(batch, rows)
    threshold = run.options.rows.threshold
    if batch.roles.rating and threshold is not None:
        number = number_column(columns["rating"], "rating", rows)
        liked = rows.kept & (number >= threshold)
        out.below += int((rows.kept & ~liked).sum())
        rows.kept = liked
    if not rows.kept.all():
        columns, rows = _filtered(columns, rows)
        if not len(rows.kept):
            return
    learnt = run.learnt
    user, item = id_column(columns["user"], learnt.users, rows), id_column(columns["item"], learnt.items, rows)
    label = label_column(columns["label"], rows) if batch.roles.label else None
    time = time_column(columns["time"], learnt.times, rows) if batch.roles.time else None
    found = items.encode(item, rows)
    users = _codes(out.users, user, rows.kept)
    if not rows.kept.all():
        found = found[rows.kept]
        label, time = (x[rows.kept] if x is not None else None for x in (label, time))
    if time is not None:
        out.times = out.times or out.column("time", learnt.times.dtype)
        out.times.append(time)
    if label is None:
        out.parts[split][0].append(users)
        out.parts[split][1].append(found)
        return
    for code, name in enumerate(SPLITS):
        out.parts[name][0].append(users[label == code])
        out.parts[name][1].append(found[label == code])


def _codes(ids: Ids, values: pa.Array, kept: np.ndarray) -> np.ndarray:
    """Codes of the rows that are kept: what was refused must not become an id."""
    if kept.all():
        return ids.encode(values)
    values = values.filter(pa.array(kept))
    return ids.encode(values.dictionary_decode() if pa.types.is_dictionary(values.type) else values)


def _refuse_headers(batch: _Batch, rows: Rows) -> None:
    """A header in the middle, as files that were put together have, or one that --no-header did not expect."""
    user, item = batch.columns["user"], batch.columns["item"]
    if not pa.types.is_string(user.type) or not pa.types.is_string(item.type):
        return
    for at, (u, i) in enumerate(zip(user[:3].to_pylist(), item[:3].to_pylist(), strict=True)):
        if u and i and _is_rule(u) and _is_rule(i):
            rows.refuse(np.array([at]), "a line below the header", lambda at: "a line below the header, no row")
    if batch.table.numbered:
        first = [column[0].as_py() or "" for column in (user, item)]
        if names.plain(first[0]) in USER.names and names.plain(first[1]) in ITEM.names:
            rows.refuse(
                np.array([0]), "looks like a header", lambda at: f"{first} looks like a header; leave --no-header out"
            )
        return
    if pc.index(user, batch.roles.user).as_py() < 0:
        return
    same = pc.and_(pc.equal(user, batch.roles.user), pc.equal(item, batch.roles.item)).fill_null(False)
    rows.refuse(
        same.to_numpy(zero_copy_only=False),
        "looks like a header",
        lambda at: f"{batch.roles.user!r}, {batch.roles.item!r} looks like the header again",
    )


def _is_rule(text: str) -> bool:
    """Whether a cell is part of a line that is drawn below a header."""
    return len(text.strip()) > 1 and not text.strip(" -=:+")


def _filtered(columns: dict[str, pa.Array], rows: Rows) -> tuple[dict[str, pa.Array], Rows]:
    kept = np.flatnonzero(rows.kept)
    where = rows.where
    return {name: column.take(pa.array(kept)) for name, column in columns.items()}, Rows(
        len(kept), lambda at: where(int(kept[at])), rows.bad
    )
