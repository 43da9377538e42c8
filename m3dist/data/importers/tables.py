"""Interactions in CSV, TSV or Parquet: three tables (train, val, test) or one, with or without a split column.

Item ids that are row numbers of .npy features stay what they are. Other ids need an items table (its row i is
row i of the features) or Parquet features with an id column. Read in batches; see ids.py for memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers import splits as sp
from m3dist.data.importers.columns import (
    SUFFIXES,
    Table,
    Where,
    find_table,
    id_column,
    number_column,
    open_table,
    time_column,
)
from m3dist.data.importers.common import Source
from m3dist.data.importers.ids import (
    Growing,
    Ids,
    IntegerIds,
    KnownIds,
    NotIntegers,
    RowIds,
    StringIds,
    UnknownId,
    renumber,
)

USER = ("userid", "user", "uid")
ITEM = ("itemid", "item", "iid", "movieid", "asin")
RATING = ("rating", "score", "stars")
TIME = ("timestamp", "time", "datetime", "date")
SPLIT = ("xlabel", "split", "fold")
TITLE = ("title", "name")
STEMS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
LABELS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "0": 0, "1": 1, "2": 2}
UNSPLIT = "all"


@dataclass(frozen=True)
class Options:
    """What a person may say about tables; None leaves it to the names of columns and files."""

    user_column: str | None = None
    item_column: str | None = None
    rating_column: str | None = None
    threshold: float | None = None  # keep interactions with at least this rating
    time_column: str | None = None
    split_column: str | None = None
    header: bool = True
    items: Path | None = None  # items table
    features: dict[str, Path] = field(default_factory=dict)  # modality: file
    present: dict[str, Path] = field(default_factory=dict)
    split: str | None = None  # strategy, for data without a split; see splits.Plan
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    cold: float = 0.0

    @property
    def plan(self) -> sp.Plan:
        return sp.Plan(self.split, self.ratios, self.seed, self.cold)


@dataclass
class Layout:
    """Which file is what. interactions: split (or "all") -> table."""

    format: str
    interactions: dict[str, Path]
    items: Path | None
    features: dict[str, Path]
    folder: Path | None = None  # where has_*.npy may lie


def read(src: Path, options: Options) -> Source:
    """Read the tables at `src`, a file or a folder. Raises DataError."""
    return read_layout(find_layout(src, options), options)


def find_layout(src: Path, options: Options) -> Layout:
    """Recognise the files of a folder by their names."""
    if src.is_file() or (src.is_dir() and src.suffix == ".parquet"):
        return Layout("tables", {UNSPLIT: src}, options.items, options.features)
    if not src.is_dir():
        raise DataError(f"{src}: no such file or folder")
    items = options.items or find_table(src, ("items", "item"))
    found = {split: find_table(src, stems) for split, stems in STEMS.items()}
    interactions = {split: path for split, path in found.items() if path}
    if len(interactions) < 3 and interactions and not (options.split and set(interactions) == {"train"}):
        missing = next(split for split in SPLITS if split not in interactions)
        have = " and ".join(path.name for path in interactions.values())
        raise DataError(
            f"{src.name}: has {have} but no {missing} table ({' or '.join(STEMS[missing])} with one of "
            f"{', '.join(SUFFIXES)}); give all three, or one table and --split"
        )
    if len(interactions) < 3:
        interactions = {UNSPLIT: interactions.get("train") or _only_table(src, options)}
    taken = {path.resolve() for path in (*interactions.values(), items) if path}
    return Layout("tables", interactions, items, options.features or _find_features(src, taken), src)


def _only_table(src: Path, options: Options) -> Path:
    named = find_table(src, ("interactions", "ratings", "inter"))
    if named:
        return named
    taken = {path.resolve() for path in (options.items, *options.features.values()) if path}
    tables = [path for path in sorted(src.iterdir()) if path.suffix in SUFFIXES and path.resolve() not in taken]
    tables = [path for path in tables if path.stem not in ("items", "item", "users", "PROVENANCE", "README")]
    if len(tables) != 1:
        raise DataError(
            f"{src.name}: expected train, val and test tables or one table of interactions ({', '.join(SUFFIXES)}), "
            f"found {', '.join(path.name for path in tables) or 'no table'}"
        )
    return tables[0]


def _find_features(src: Path, taken: set[Path]) -> dict[str, Path]:
    """Feature files of a folder, named by what stands before the first _ of the stem."""
    out: dict[str, Path] = {}
    for path in sorted(src.iterdir()):
        keyed = path.suffix == ".parquet" and path.resolve() not in taken and path.stem not in ("users", "user")
        if not keyed and (path.suffix not in feat.MATRIX_SUFFIXES or path.stem.startswith("has_")):
            continue
        name = path.stem.split("_")[0]
        if name in out:
            raise DataError(
                f"{src.name}: {out[name].name} and {path.name} are both modality {name!r}; "
                "choose with --feature NAME=PATH"
            )
        out[name] = path
    return out


def read_layout(layout: Layout, options: Options) -> Source:
    """Read with integer ids; start over with strings for users or items that turn out to be none."""
    options.plan.check()
    strings: dict[str, NotIntegers] = {}
    while True:
        try:
            return _Reader(layout, options, strings).read()
        except NotIntegers as found:
            strings[found.kind] = found


class _Reader:
    def __init__(self, layout: Layout, options: Options, strings: dict[str, NotIntegers]):
        self.layout, self.options, self.strings = layout, options, strings
        self.notes: list[str] = []
        self.below = 0  # interactions under the rating threshold
        self.times = Growing(np.float64)

    def read(self) -> Source:
        layout, options = self.layout, self.options
        matrices = [feat.matrix(n, p) for n, p in layout.features.items() if p.suffix != ".parquet"]
        self.users: Ids = StringIds() if "user" in self.strings else IntegerIds()
        self.items, titles = self._item_ids(matrices)
        parts = {split: (Growing(), Growing()) for split in (*SPLITS, UNSPLIT)}
        for split, path in layout.interactions.items():
            self._interactions(open_table(path, options.header), split, parts)
        keyed = [self._keyed(n, p) for n, p in layout.features.items() if p.suffix == ".parquet"]
        user_ids, dense_user = self.users.finish()
        if not len(user_ids):
            raise DataError(f"{next(iter(layout.interactions.values())).name}: no rating reaches {options.threshold:g}")
        item_ids, dense_item = self.items.finish()
        data = {
            split: (renumber(user.take(), dense_user), renumber(item.take(), dense_item))
            for split, (user, item) in parts.items()
        }
        by_name = {f.name: f for f in (*matrices, *(k.place(dense_item, len(item_ids)) for k in keyed))}
        features = [by_name[name] for name in layout.features]
        self.notes += feat.assign_flags(features, options.present, layout.folder)
        if isinstance(self.items, RowIds) and not any((item == 0).any() for _, item in data.values()):
            self.notes.append("item 0 never occurs: if item ids start at 1, add an items table in the features' order")
        if self.below:
            self.notes.append(f"{self.below} interactions rated under {options.threshold:g} were left out")
        splits, duplicates = self._splits(data)
        items: Any = pa.table({"id": item_ids, "title": titles}) if titles is not None else item_ids
        files = {split: (layout.interactions.get(split) or layout.interactions[UNSPLIT]).name for split in SPLITS}
        return Source(
            layout.format,
            len(user_ids),
            len(item_ids),
            splits,
            files,
            features,
            user_ids,
            items,
            duplicates,
            _said(options),
            self.notes,
        )

    def _item_ids(self, matrices: list[feat.Feature]) -> tuple[Ids, pa.Array | None]:
        """How item ids become rows, and titles where an items table has them."""
        if self.layout.items:
            table = open_table(self.layout.items)
            column = table.pick(self.options.item_column if self._has(table) else None, ITEM, "item", "--item-column")
            title = table.pick(None, TITLE, "title", "", required=False)
            ids, titles = [], []
            for where, batch in table.batches([column, title] if title else [column]):
                ids.append(id_column(batch[0], "item", "item" in self.strings, where))
                titles += batch[1:]
            all_ids = pa.concat_arrays(ids) if ids else pa.array([], pa.int64())
            if not len(all_ids):
                raise DataError(f"{table.path.name}: no items")
            if len(pc.unique(all_ids)) != len(all_ids):
                twice = pc.value_counts(all_ids).filter(pc.greater(pc.value_counts(all_ids).field("counts"), 1))
                raise DataError(f"{table.path.name}: item id {twice[0]['values'].as_py()!r} stands there twice")
            return KnownIds(all_ids, table.path.name), pa.concat_arrays(titles) if title else None
        if matrices:
            rows = matrices[0].rows or 0
            if "item" in self.strings:
                raise DataError(
                    f"{self.strings['item']}; rows of {matrices[0].file} are items 0..{rows - 1}, so item ids must be "
                    "row numbers, or an items table (--items) must list the ids in the features' order"
                )
            return RowIds(rows, matrices[0].file), None
        return (StringIds() if "item" in self.strings else IntegerIds()), None

    def _has(self, table: Table) -> bool:
        return self.options.item_column in table.columns

    def _interactions(self, table: Table, split: str, parts: dict[str, tuple[Growing, Growing]]) -> None:
        """Append the rows of one table to `parts`."""
        o = self.options
        numbered = not o.header and table.delimiter is not None
        user = table.pick(o.user_column, ("1",) if numbered else USER, "user", "--user-column")
        item = table.pick(o.item_column, ("2",) if numbered else ITEM, "item", "--item-column")
        rating = time = label = ""
        if o.threshold is not None:
            rating = table.pick(o.rating_column, RATING, "rating", "--rating-column")
        elif o.rating_column is not None:
            raise DataError("--rating-column without --threshold: say from which rating on an interaction counts")
        if o.split in ("temporal", "leave-last-out"):
            time = table.pick(o.time_column, TIME, "time", "--time-column")
        if split == UNSPLIT:
            label = table.pick(o.split_column, SPLIT, "split", "--split-column", required=False)
            if label and o.split:
                raise DataError(f"{table.path.name}: has a split column, {label!r}; leave --split out")
            if not label and not o.split:
                raise DataError(
                    f"{table.path.name}: no split: no column says train, val or test (--split-column), so choose "
                    f"--split {' or '.join(sp.STRATEGIES)}"
                )
        elif o.split or o.split_column:
            raise DataError(f"{table.path.name}: train, val and test are split already; leave --split out")
        roles = {"user": user, "item": item, "rating": rating, "time": time, "label": label}
        roles = {role: name for role, name in roles.items() if name}
        rows = 0
        for where, batch in table.batches(list(roles.values())):
            rows += len(batch[0])
            if not len(batch[0]):
                continue
            columns = dict(zip(roles, batch, strict=True))
            if rating:
                kept = np.flatnonzero(number_column(columns["rating"], "rating", where) >= (o.threshold or 0))
                self.below += len(batch[0]) - len(kept)
                columns = {name: column.take(pa.array(kept)) for name, column in columns.items()}
                where = _at(where, kept)
                if not len(kept):
                    continue
            users = self._encode(self.users, columns["user"], "user", where)
            items = self._encode(self.items, columns["item"], "item", where)
            if time:
                self.times.append(time_column(columns["time"], where))
            if not label:
                parts[split][0].append(users)
                parts[split][1].append(items)
                continue
            codes = _label_codes(columns["label"], where)
            for code, name in enumerate(SPLITS):
                parts[name][0].append(users[codes == code])
                parts[name][1].append(items[codes == code])
        if not rows:
            raise DataError(f"{table.path.name}: no interactions")

    def _encode(self, ids: Ids, column: pa.Array, kind: str, where: Where) -> np.ndarray:
        try:
            return ids.encode(id_column(column, kind, kind in self.strings, where))
        except UnknownId as error:
            hint = (
                "; if ids are not row numbers, list them in an items table in the features' order"
                if isinstance(ids, RowIds)
                else ""
            )
            raise DataError(f"{where(error.at)}: {kind} {error}{hint}") from None

    def _keyed(self, name: str, path: Path) -> feat.Keyed:
        """Read Parquet features; items that only features know join the catalogue."""
        table = open_table(path)
        given = self.options.item_column if self._has(table) else None
        column = table.pick(given, (*ITEM, "id"), "item", "--item-column")
        names = feat.feature_columns(table, column)
        keyed = feat.Keyed(name, path.name)
        seen = np.zeros(0, dtype=bool)
        for where, batch in table.batches([column, *names]):
            values, held = feat.values(batch[1:], where)
            codes = self._encode(self.items, batch[0], "item", where)
            seen = np.concatenate([seen, np.zeros(max(0, int(codes.max(initial=-1)) + 1 - len(seen)), dtype=bool)])
            again = seen[codes]
            again[np.setdiff1d(np.arange(len(codes)), np.unique(codes, return_index=True)[1])] = True
            if again.any():
                at = int(np.flatnonzero(again)[0])
                raise DataError(f"{where(at)}: item {batch[0][at].as_py()!r} has a row already")
            seen[codes] = True
            if len(values):
                if keyed.chunks and keyed.chunks[0].shape[1] != values.shape[1]:
                    raise DataError(f"{where(0)}: {values.shape[1]} feature values, {keyed.chunks[0].shape[1]} before")
                keyed.codes.append(codes[held])
                keyed.chunks.append(values)
        return keyed

    def _splits(self, data: sp.Splits) -> tuple[sp.Splits, int]:
        user, item = data.pop(UNSPLIT)
        if not self.options.split:
            return data, 0
        times = self.times.take() if self.options.split != "random" else None
        interactions = sp.Interactions(user, item, times)
        del user, item, times  # so that split() can let them go
        data.clear()
        source = self.layout.interactions[UNSPLIT].name
        return sp.split(interactions, self.options.plan, source)


def _at(where: Where, kept: np.ndarray) -> Callable[[int], str]:
    return lambda at: where(int(kept[at]))


def _label_codes(column: pa.Array, where: Where) -> np.ndarray:
    """int8 [b]: 0 train, 1 val, 2 test."""
    if pa.types.is_floating(column.type):
        column = pc.cast(column, pa.int64(), safe=False)
    encoded = pc.dictionary_encode(pc.cast(column, pa.string()), null_encoding="encode")
    names = encoded.dictionary.to_pylist()
    table = np.array([LABELS.get(str(name).strip().lower(), -1) for name in names], dtype=np.int8)
    codes = table[encoded.indices.to_numpy(zero_copy_only=False)]
    bad = np.flatnonzero(codes < 0)
    if len(bad):
        raise DataError(
            f"{where(int(bad[0]))}: split {column[int(bad[0])].as_py()!r}; expected train, val or test, or 0, 1 or 2"
        )
    return codes


def _said(options: Options) -> dict[str, Any]:
    """The options that differ from their defaults, files by name only: provenance knows no one's folders."""
    default, out = Options(), {}
    for name in Options.__dataclass_fields__:
        value = getattr(options, name)
        if value != getattr(default, name) and name not in ("features", "present"):
            out[name] = value.name if isinstance(value, Path) else value
    if options.present:
        out["present"] = {name: path.name for name, path in options.present.items()}
    if options.split:
        out |= {"ratios": list(options.ratios), "seed": options.seed}
    return out
