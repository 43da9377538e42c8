"""Reads a layout of tables and features into a source: one way for every format that is made of tables.

Work goes in batches, so memory follows the interactions (8 bytes each, 16 with times) and the distinct ids.
"""

from __future__ import annotations

from dataclasses import dataclass
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
class _Content:
    """What all files of a source hold, by dense ids; times belong to unsplit interactions."""

    data: sp.Splits
    times: np.ndarray | None
    user_ids: pa.Array
    item_ids: Any  # an array, or a table with titles
    features: list[feat.Feature]


def _read(layout: Layout, run: Pass) -> Source:
    options = run.options
    items = Catalogue(layout, run)
    found = Interactions(new_ids(run.learnt.users.mode))
    used = {path for path in (layout.items, layout.titles) if path}
    for split, path in layout.interactions.items():
        table = open_table(path, options.text, run.learnt.quotings)
        read_interactions(table, split, found, items, run)
        used |= {path, *table.files()}
    content = _content(found, items, layout, run)
    notes, seen = feat.assign_flags(content.features, options.files.present, layout.folder)
    content.features, short = feat.pad(content.features, len(content.item_ids))
    run.notes += notes + short
    used |= seen | {split_key(path)[0] for path in layout.features.values()}
    if options.plan.min_user or options.plan.min_item:
        _keep_core(content, run)
    result = _split(content, layout, run)
    names = {s: (layout.interactions.get(s) or layout.interactions[UNSPLIT]).name for s in SPLITS}
    return Source(
        layout.format,
        len(content.user_ids),
        len(content.item_ids),
        result.splits,
        names,
        features=content.features,
        user_ids=content.user_ids,
        item_ids=content.item_ids,
        duplicates=result.duplicates,
        options=options.said(),
        readings=run.readings,
        notes=run.notes + result.notes + run.bad.notes(),
        folder=layout.folder,
        used=used,
    )


def _content(found: Interactions, items: Catalogue, layout: Layout, run: Pass) -> _Content:
    """Dense ids in place of codes."""
    placed = items.read_vectors()
    user_ids, dense_user = found.users.finish()
    if not len(user_ids):
        why = f"no rating reaches {run.options.rows.threshold:g}" if found.below else "no row can be used"
        raise DataError(f"{next(iter(layout.interactions.values())).name}: {why}")
    codes = {split: (user.take(), item.take()) for split, (user, item) in found.parts.items()}
    item_ids, dense_item, features = items.finish(placed, [item for _, item in codes.values()])
    for kind, ids in ((run.learnt.users, user_ids), (run.learnt.items, item_ids)):
        run.notes += id_notes(kind, ids["id"] if isinstance(ids, pa.Table) else ids)
    if found.time_name:
        run.notes.append(run.learnt.times.said(found.time_name))
    if found.below:
        run.notes.append(f"{found.below} interactions rated under {run.options.rows.threshold:g} were left out")
    data = {s: (renumber(user, dense_user), renumber(item, dense_item)) for s, (user, item) in codes.items()}
    if UNSPLIT not in layout.interactions or not run.options.plan.split:
        data.pop(UNSPLIT)
    else:
        data = {UNSPLIT: data[UNSPLIT]}
    times = found.times.take() if found.times is not None else None
    return _Content(data, times, user_ids, item_ids, features)


def _keep_core(content: _Content, run: Pass) -> None:
    """Leave out users and items with few interactions, and the features of these items."""
    plan, n_users, n_items = run.options.plan, len(content.user_ids), len(content.item_ids)
    keep_U, keep_I = kcore.keep(content.data, n_users, n_items, plan)
    new_U, new_I = (np.cumsum(keep, dtype=np.int32) - np.int32(1) for keep in (keep_U, keep_I))
    for split, (user, item) in list(content.data.items()):
        kept = keep_U[user] & keep_I[item]
        content.data[split] = new_U[user[kept]], new_I[item[kept]]
        if content.times is not None:
            content.times = content.times[kept]
    content.user_ids = content.user_ids.filter(pa.array(keep_U))
    content.item_ids = content.item_ids.filter(pa.array(keep_I))
    content.features = [feature.select(keep_I) for feature in content.features]
    run.notes.append(
        f"left out {n_users - int(keep_U.sum()):,} users and {n_items - int(keep_I.sum()):,} items with under "
        f"{plan.min_user} (--min-user) and {plan.min_item} (--min-item) interactions"
    )


def _split(content: _Content, layout: Layout, run: Pass) -> sp.Split:
    plan = run.options.plan
    if not plan.split:
        return sp.Split(content.data, 0, [])
    times = run.learnt.times
    cuts = sp.Cuts(
        times.moment(plan.val_from, "--val-from") if plan.val_from else None,
        times.moment(plan.test_from, "--test-from") if plan.test_from else None,
    )
    user, item = content.data.pop(UNSPLIT)
    interactions = sp.Interactions(user, item, content.times)
    content.times = None
    del user, item  # so that split() can let them go
    return sp.split(interactions, plan, layout.interactions[UNSPLIT].name, cuts)
