"""Reads a layout of tables and features into a source: one way for every format that is made of tables.

Work goes in batches, so memory follows the interactions (8 bytes each, 16 with times) and the distinct ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers import kcore
from m3dist.data.importers import splits as sp
from m3dist.data.importers.catalogue import Catalogue
from m3dist.data.importers.common import Source
from m3dist.data.importers.featurefiles import split_key
from m3dist.data.importers.ids import new_ids, renumber
from m3dist.data.importers.interactions import Interactions, read_interactions
from m3dist.data.importers.layout import UNSPLIT, Layout
from m3dist.data.importers.learnt import Learnt, Pass
from m3dist.data.importers.opening import open_table
from m3dist.data.importers.options import Options
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.values import Reread, id_notes


def read_layout(layout: Layout, options: Options) -> Source:
    """Read the tables and features; read them again where a later row teaches what a column is. Raises DataError."""
    options.plan.check()
    learnt = Learnt.of(options)
    while True:
        try:
            return _read(
                layout, Pass(options, learnt, BadRows(options.rows.on_bad_row == "drop"), notes=[*layout.notes])
            )
        except Reread:
            learnt.again()


@dataclass
class Known:
    """Original ids by dense id, and the features. items: an array, or a table with titles."""

    users: pa.Array
    items: Any
    features: list[feat.Feature]

    def keep(self, keep_U: np.ndarray, keep_I: np.ndarray, run: Pass) -> None:
        """Leave out users and items (bool [U], [I]) that have few interactions."""
        plan = run.options.plan
        self.users, self.items = self.users.filter(pa.array(keep_U)), self.items.filter(pa.array(keep_I))
        self.features = [feature.select(keep_I) for feature in self.features]
        run.notes.append(
            f"left out {int((~keep_U).sum()):,} users and {int((~keep_I).sum()):,} items with under "
            f"{plan.min_user} (--min-user) and {plan.min_item} (--min-item) interactions"
        )


@dataclass
class _Content:
    """What all files of a source hold, by dense ids; times belong to unsplit interactions."""

    data: sp.Splits
    times: np.ndarray | None
    ids: Known


def _read(layout: Layout, run: Pass) -> Source:
    options = run.options
    items = Catalogue(layout, run)
    found = Interactions(new_ids(run.learnt.users.mode))
    used = {path for path in (layout.items, layout.titles) if path}
    for split, path in layout.interactions.items():
        table = open_table(path, options.text, run.learnt.quotings)
        read_interactions(table, split, found, items.codes, run)
        used |= {path, *table.files()}
    content = _content(found, items, layout, run)
    used |= finish_features(content.ids, layout, run)
    if options.plan.min_user or options.plan.min_item:
        _keep_core(content, run)
    return source(content.ids, _split(content, layout, run), layout, run, used)


def finish_features(ids: Known, layout: Layout, run: Pass) -> set[Path]:
    """Give features their flags, and rows for all items; the files that were used."""
    notes, seen = feat.assign_flags(ids.features, run.options.files.present, layout.folder)
    ids.features, short = feat.pad(ids.features, len(ids.items))
    run.notes += notes + short
    return seen | {split_key(path)[0] for path in layout.features.values()}


def source(ids: Known, result: sp.Split, layout: Layout, run: Pass, used: set[Path]) -> Source:
    """What was read, as a source. used: the files that were read."""
    return Source(
        layout.format,
        len(ids.users),
        len(ids.items),
        result.splits,
        {s: (layout.interactions.get(s) or layout.interactions[UNSPLIT]).name for s in SPLITS},
        features=ids.features,
        user_ids=ids.users,
        item_ids=ids.items,
        duplicates=result.duplicates,
        options=run.options.said(),
        readings=run.readings,
        notes=run.notes + result.notes + run.bad.notes(),
        folder=layout.folder,
        used=used,
    )


def _content(found: Interactions, items: Catalogue, layout: Layout, run: Pass) -> _Content:
    """Dense ids in place of codes."""
    placed = items.read_vectors()
    codes = {split: (user.take(), item.take()) for split, (user, item) in found.parts.items()}
    first = next(iter(layout.interactions.values())).name
    ids, dense_user, dense_item = known(found, items, (placed, [item for _, item in codes.values()]), first)
    data = {s: (renumber(user, dense_user), renumber(item, dense_item)) for s, (user, item) in codes.items()}
    if UNSPLIT not in layout.interactions or not run.options.plan.split:
        data.pop(UNSPLIT)
    else:
        data = {UNSPLIT: data[UNSPLIT]}
    return _Content(data, found.times.take() if found.times is not None else None, ids)


def known(
    found: Interactions, items: Catalogue, rest: tuple[list[feat.Placed], Iterable[np.ndarray]], name: str
) -> tuple[Known, np.ndarray | None, np.ndarray | None]:
    """All ids once everything is read, and dense ids by code of users and of items. Raises DataError.

    rest: features with ids, and the codes of items of all interactions; name: of the first table, for messages.
    """
    run = items.run
    user_ids, dense_user = found.users.finish()
    if not len(user_ids):
        why = f"no rating reaches {run.options.rows.threshold:g}" if found.below else "no row can be used"
        raise DataError(f"{name}: {why}")
    item_ids, dense_item, features = items.finish(*rest)
    for kind, ids in ((run.learnt.users, user_ids), (run.learnt.items, item_ids)):
        run.notes += id_notes(kind, ids["id"] if isinstance(ids, pa.Table) else ids)
    if found.time_name:
        run.notes.append(run.learnt.times.said(found.time_name))
    if found.below:
        run.notes.append(f"{found.below} interactions rated under {run.options.rows.threshold:g} were left out")
    return Known(user_ids, item_ids, features), dense_user, dense_item


def _keep_core(content: _Content, run: Pass) -> None:
    """Leave out users and items with few interactions, and the features of these items."""
    keep_U, keep_I = kcore.keep(content.data, len(content.ids.users), len(content.ids.items), run.options.plan)
    new_U, new_I = (np.cumsum(keep, dtype=np.int32) - np.int32(1) for keep in (keep_U, keep_I))
    for split, (user, item) in list(content.data.items()):
        kept = keep_U[user] & keep_I[item]
        content.data[split] = new_U[user[kept]], new_I[item[kept]]
        if content.times is not None:
            content.times = content.times[kept]
    content.ids.keep(keep_U, keep_I, run)


def cuts_of(run: Pass) -> sp.Cuts:
    """Where val and test begin, in the unit of the times. Raises DataError."""
    plan, times = run.options.plan, run.learnt.times
    return sp.Cuts(
        times.moment(plan.val_from, "--val-from") if plan.val_from else None,
        times.moment(plan.test_from, "--test-from") if plan.test_from else None,
    )


def _split(content: _Content, layout: Layout, run: Pass) -> sp.Split:
    plan = run.options.plan
    if not plan.split:
        return sp.Split(content.data, 0, [])
    cuts = cuts_of(run)
    user, item = content.data.pop(UNSPLIT)
    interactions = sp.Interactions(user, item, content.times)
    content.times = None
    del user, item  # so that split() can let them go
    return sp.split(interactions, plan, layout.interactions[UNSPLIT].name, cuts)
