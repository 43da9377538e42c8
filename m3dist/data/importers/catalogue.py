"""Which items there are, and which row of which features is whose.

The items table says it, row by row; without one, features whose rows go by position do; without these, whatever ids
occur are the items. Features with ids are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3dist.data.dataset import DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers.featurefiles import is_ambiguous, open_feature
from m3dist.data.importers.files import need_backing
from m3dist.data.importers.ids import INTEGERS, TEXT, Ids, IntegerIds, KnownIds, RowIds, StringIds, new_ids
from m3dist.data.importers.layout import Layout
from m3dist.data.importers.learnt import Pass
from m3dist.data.importers.opening import open_table
from m3dist.data.importers.options import Text
from m3dist.data.importers.rows import BadRows, Rows
from m3dist.data.importers.table import ITEMS_ID, TITLE
from m3dist.data.importers.values import IdKind, id_column


class ItemCodes:
    """Codes of item ids: any ids, or those of a table or of rows, whose codes are the dense ids.

    unknown: why an id that has no code is refused; "" where every id gets one.
    """

    def __init__(self, ids: Ids, kind: IdKind, unknown: str = ""):
        self.ids, self.kind, self.unknown = ids, kind, unknown

    @property
    def open(self) -> bool:
        """Whether every id gets a code."""
        return isinstance(self.ids, (IntegerIds, StringIds))

    def encode(self, ids: pa.Array, rows: Rows) -> np.ndarray:
        """int32 codes [b] of the item ids of a batch; rows whose item is not known are refused."""
        if self.open and not rows.kept.all():  # refused ids must not become items
            codes = np.full(len(ids), -1, dtype=np.int32)
            part = ids.filter(pa.array(rows.kept))
            codes[rows.kept] = self.ids.encode(part.dictionary_decode() if pa.types.is_dictionary(part.type) else part)
            return codes
        codes = self.ids.encode(ids)
        if self.unknown:
            odd = self.kind.odd
            why = (
                f" (ids are text, since {odd} is no integer)" if self.kind.mode == TEXT and not self.kind.given else ""
            )
            rows.refuse(codes < 0, "unknown item", lambda at: f"item id {ids[at].as_py()!r} {self.unknown}{why}")
        return codes


class Catalogue:
    """The items of one pass."""

    def __init__(self, layout: Layout, run: Pass):
        self.layout, self.run = layout, run
        opened = self._open()
        self.matrices = [feature for feature in opened if isinstance(feature, feat.Feature)]
        self.vectors = [feature for feature in opened if isinstance(feature, feat.Vectors)]
        self.titles: pa.Array | None = None
        self._unknown = ""
        ids = self._ids()
        self.codes = ItemCodes(ids, run.learnt.items, self._unknown)

    def read_vectors(self) -> list[feat.Placed]:
        """Features with ids; items that only features know join the catalogue, if nothing else sets it."""
        return [self._placed(source) for source in self.vectors]

    def finish(
        self, placed: list[feat.Placed], item_codes: Iterable[np.ndarray]
    ) -> tuple[Any, np.ndarray | None, list[feat.Feature]]:
        """Original ids by dense id (a table where there are titles), dense id by code, and the features by dense id.

        item_codes: those of all interactions.
        """
        if isinstance(self.codes.ids, RowIds):
            self._check_rows(self.codes.ids, any((codes == 0).any() for codes in item_codes))
        ids, dense = self.codes.ids.finish()
        n = len(ids)
        by_name = {f.name: f for f in (*self.matrices, *(source.place(dense, n) for source in placed))}
        features = [by_name[name] for name in self.layout.features if name in by_name]
        titles = self._join_titles(ids) if self.layout.titles else self.titles
        return (pa.table({"id": ids, "title": titles}) if titles is not None else ids), dense, features

    def _open(self) -> list[feat.Feature | feat.Vectors]:
        """Open the feature files; what was opened in an earlier pass is not opened again."""
        run, out = self.run, []
        for name, path in self.layout.features.items():
            by_chance = not run.options.files.features and (name in self.layout.lenient or is_ambiguous(path))
            try:
                if name not in run.learnt.features:
                    text = Text(encoding=run.options.text.encoding)
                    feature = open_feature(name, path, run.options.columns, text, run.learnt.quotings)
                    if by_chance and feature.whole:
                        raise DataError(
                            f"{path.name}: whole numbers; --feature {name}={path.name} takes them as features"
                        )
                    run.learnt.features[name] = feature
                out.append(run.learnt.features[name])
            except DataError as error:
                if not by_chance:
                    raise
                run.notes.append(f"not used: {error}")
        return out

    def _ids(self) -> Ids:
        kind = self.run.learnt.items
        if self.layout.items:
            return self._from_table()
        if self.matrices:
            first = max(self.matrices, key=lambda feature: feature.rows or 0)
            rows = first.rows or 0
            start = self.run.options.rows.first_item
            if kind.mode != INTEGERS:
                raise DataError(
                    f"{kind.odd or 'an item id over 2**63'} is not an integer; rows of {first.file} are items "
                    f"{start}..{start + rows - 1}, so item ids must be row numbers, or an items table (--items) must "
                    "list the ids in the features' order"
                )
            self._unknown = (
                f"is out of range {start}..{start + rows - 1}, the rows of {first.file}; if ids are not row numbers, "
                "list them in an items table in the features' order (--items)"
            )
            return RowIds(rows, 2 * rows, start)
        return new_ids(kind.mode)

    def _from_table(self) -> KnownIds:
        assert self.layout.items
        run, columns = self.run, self.run.options.columns
        table = open_table(self.layout.items, Text(encoding=run.options.text.encoding), run.learnt.quotings)
        given = columns.items_id or (columns.item_column if columns.item_column in table.columns else None)
        column, title = table.pick(given, ITEMS_ID), table.pick(None, TITLE)
        run.readings[table.name] = f"{table.reading}; items by {column!r}" + (f", title = {title!r}" if title else "")
        strict, ids, titles = BadRows(), [], []  # no row is dropped: those behind it would get others' features
        for where, batch in table.batches([column, title] if title else [column], strict):
            found = id_column(batch[0], run.learnt.items, Rows(len(batch[0]), where, strict))
            ids.append(found.dictionary_decode() if pa.types.is_dictionary(found.type) else found)
            titles += [_text(t) for t in batch[1:]]
            need_backing(table.path, 4 * sum(part.nbytes for part in (*ids, *titles)), "its ids and titles")
        all_ids = pa.concat_arrays(ids) if ids else pa.array([], pa.int64())
        if not len(all_ids):
            raise DataError(f"{table.name}: no items")
        if len(pc.unique(all_ids)) != len(all_ids):
            counts = pc.value_counts(all_ids)
            twice = counts.filter(pc.greater(counts.field("counts"), 1))
            raise DataError(f"{table.name}: item id {twice[0]['values'].as_py()!r} stands there twice")
        self.titles = pa.concat_arrays(titles) if titles else None
        self._unknown = f"is not among the {len(all_ids)} ids of {table.name}"
        return KnownIds(all_ids)

    def _check_rows(self, ids: RowIds, any_first: bool) -> None:
        """Ids that reach behind the rows are items that lack the modality, unless they are counted from 1."""
        first = max(self.matrices, key=lambda feature: feature.rows or 0)
        rows = first.rows or 0
        if any_first or ids.first:
            return
        if ids.n == rows + 1:
            raise DataError(
                f"{first.file}: {rows} rows, but item ids go up to {rows} and 0 never occurs: if ids count from 1, say "
                "--first-item 1; if not, list the ids in the features' order in an items table (--items)"
            )
        self.run.notes.append(
            "item 0 never occurs: if item ids count from 1, say --first-item 1, or add an items table in the features' "
            "order"
        )

    def _placed(self, source: feat.Vectors) -> feat.Placed:
        run, placed = self.run, feat.Placed(source)
        seen = np.zeros(0, dtype=bool)
        for where, ids, values, held in source.batches(run.bad):
            rows = Rows(len(ids), where, run.bad)
            found = id_column(ids, run.learnt.items, rows)
            codes = self.codes.encode(found, rows)
            seen = np.concatenate([seen, np.zeros(max(0, int(codes.max(initial=-1)) + 1 - len(seen)), dtype=bool)])
            again = np.zeros(len(codes), dtype=bool)
            again[rows.kept] = seen[codes[rows.kept]]
            again[np.setdiff1d(np.arange(len(codes)), np.unique(codes, return_index=True)[1])] = True
            again &= rows.kept
            rows.refuse(again, "doubled feature row", _doubled(ids))
            seen[codes[rows.kept]] = True
            placed.add(codes[held & rows.kept], values[rows.kept[held]], where)
        return placed

    def _join_titles(self, ids: pa.Array) -> pa.Array:
        """Titles by dense id from a table that need not hold every item."""
        try:
            return self._titles(ids, self.layout.titles_text)
        except DataError:
            if self.layout.titles_text.encoding:
                raise
            return self._titles(ids, replace(self.layout.titles_text, encoding="latin-1"))  # as older sets are

    def _titles(self, ids: pa.Array, written: Text) -> pa.Array:
        assert self.layout.titles
        run = self.run
        table = open_table(self.layout.titles, written, run.learnt.quotings)
        column = "1" if table.numbered else table.pick(None, ITEMS_ID)
        title = "2" if table.numbered else table.pick(None, TITLE)
        run.readings[table.name] = f"{table.reading}; titles = {title!r} of items {column!r}"
        found = pa.array([None] * len(ids), pa.string()).to_pylist()
        position, size = {value: at for at, value in enumerate(ids.to_pylist())}, 0
        for where, batch in table.batches([column, title], BadRows(drop=True)):
            mine = id_column(batch[0], run.learnt.items, Rows(len(batch[0]), where, BadRows(drop=True)))
            for value, text in zip(mine.to_pylist(), _text(batch[1]).to_pylist(), strict=True):
                if value in position:
                    size += len(text or "") - len(found[position[value]] or "")
                    found[position[value]] = text
            need_backing(table.path, 4 * size, "its titles")
        return pa.array(found, pa.string())


def _doubled(ids: pa.Array) -> Callable[[int], str]:
    return lambda at: f"item {ids[at].as_py()!r} has a row already"


def _text(titles: pa.Array) -> pa.Array:
    return pc.cast(titles.dictionary_decode() if pa.types.is_dictionary(titles.type) else titles, pa.string())
