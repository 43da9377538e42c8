"""Writes the canonical data set (see m3dist.data.dataset): everything is validated on its way to disk.

Shapes: n interactions, I items, d feature width, b rows of a block.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3dist import checksums
from m3dist.data.blocks import ColumnStatistics, finite, flags, npy_header, row_blocks
from m3dist.data.dataset import SCHEMA_VERSION, SPLITS, DataError
from m3dist.data.place import Place

_INTERACTIONS = pa.schema(
    [("user", pa.int32()), ("item", pa.int32()), ("split", pa.dictionary(pa.int8(), pa.string()))]
)


@dataclass(frozen=True)
class Origin:
    """Where interactions came from, for messages: the file of each split, original ids by dense id."""

    files: Mapping[str, str] = field(default_factory=dict)
    user_ids: Any = None
    item_ids: Any = None


class Writer:
    """Writes a data set beside its destination and moves it there when it is complete and valid.

    Use as a context manager: on an error nothing is left behind.

    with Writer(dst) as out:
        out.features("visual", array)                  # float32/float16 [I, d] or an iterator of row blocks
        out.interactions(n_users, n_items, splits)     # dense ids; splits: {"train": (user, item), ...}
        summary = out.finish(user_ids, item_ids, provenance={...})

    Raises DataError on everything that a data set must not contain.
    """

    def __init__(self, dst: str | Path):
        self.place = Place(dst)
        self.tmp = self.place.tmp
        self.modalities: dict[str, int] = {}
        self.report: dict[str, Any] = {}
        self._hash = hashlib.sha256()
        self._rows: dict[str, tuple[int, str]] = {}  # modality: rows, where they came from
        self._present: dict[str, np.ndarray] = {}
        self._columns: dict[str, dict[str, int]] = {}

    def __enter__(self) -> Writer:
        self.place.open()
        (self.tmp / "features").mkdir()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.place.close()

    def features(
        self,
        name: str,
        blocks: np.ndarray | Iterable[np.ndarray],
        present: np.ndarray | None = None,
        source: str = "",
        zero_rows: str = "keep",
    ) -> None:
        """Store one modality. `blocks` is [I, d] or row blocks of it; float16 stays, other types become float32.

        Blocks go to disk as they come, so memory holds one block. The first block sets width and type.
        present: bool [I], False where an item lacks the modality (its row is zeroed and may hold anything).
        zero_rows: what a row of zeros says of an item that has the modality: "keep" nothing, "missing" that it lacks
        the modality after all, "error" that the data is wrong.
        """
        source = source or name
        if not re.fullmatch(r"[\w-]+", name):
            raise DataError(f"{source}: modality name {name!r} may hold letters, digits, - and _ only")
        if name in self.modalities:
            raise DataError(f"{source}: modality {name!r} is given twice")
        if present is not None:
            present = flags(present, source)
        rows, width, zeros = 0, 0, [np.empty(0, dtype=np.int64)]
        dtype: np.dtype = np.dtype(np.float32)
        with (self.tmp / "features" / f"{name}.npy").open("w+b") as out:
            for block in row_blocks(blocks):
                if block.ndim != 2 or block.shape[1] == 0:
                    raise DataError(f"{source}: expected [items, width] features, got shape {tuple(block.shape)}")
                if block.dtype.kind not in "fiub":
                    raise DataError(f"{source}: features must be numbers, got {block.dtype}")
                if not len(block):
                    continue
                if not rows:
                    width = block.shape[1]
                    dtype = np.dtype(np.float16 if block.dtype == np.float16 else np.float32)
                    npy_header(out, rows, width, dtype)
                    self._hash.update(f"{name}:{width}:{dtype}".encode())
                    statistics = ColumnStatistics(width)
                if block.shape[1] != width:
                    raise DataError(f"{source}: row {rows} has {block.shape[1]} values, the rows before it {width}")
                block = finite(block, dtype, rows, present, source)
                out.write(block.data)
                self._hash.update(block.data)
                has = np.ones(len(block), dtype=bool) if present is None else present[rows : rows + len(block)]
                empty = has & ~block.any(axis=1)
                if zero_rows == "error" and empty.any():
                    raise DataError(
                        f"{source}: row {rows + int(np.flatnonzero(empty)[0])} holds zeros only (--zero-rows error); "
                        "--zero-rows missing takes such items as lacking the modality"
                    )
                zeros.append(rows + np.flatnonzero(empty))
                if zero_rows == "missing":
                    has = has & ~empty
                statistics.add(block if has.all() else block[has])
                rows += len(block)
            if not rows:
                raise DataError(f"{source}: no feature rows")
            npy_header(out, rows, width, dtype)
        zero = np.concatenate(zeros)
        if present is not None and len(present) != rows:
            raise DataError(f"{source}: {rows} feature rows and {len(present)} flags of `present`")
        if zero_rows == "missing" and len(zero):
            present = np.ones(rows, dtype=bool) if present is None else present.copy()
            present[zero] = False
        if present is not None and not present.any():
            raise DataError(f"{source}: no item has the modality; leave it out")
        if present is not None and not present.all():
            (self.tmp / "present").mkdir(exist_ok=True)
            np.save(self.tmp / "present" / f"{name}.npy", present)
            self._hash.update(np.packbits(present).tobytes())
            self._present[name] = present
        self.modalities[name] = width
        self._rows[name] = rows, source
        self._columns[name] = {**statistics.counts(), "zero_rows": len(zero)}

    def truth(self, name: str, invariant: np.ndarray) -> None:
        """Store which dimensions of a planted modality are invariant, bool [d]."""
        (self.tmp / "truth").mkdir(exist_ok=True)
        np.save(self.tmp / "truth" / f"{name}.npy", invariant.astype(bool))

    def interactions(
        self,
        n_users: int,
        n_items: int,
        splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
        overlap: str = "error",
        origin: Origin | None = None,
    ) -> None:
        """Store dense (user, item) pairs per split: validated, de-duplicated, sorted by user and item.

        overlap: what a pair in two splits means. "error" refuses; "drop" keeps it in train before val before test.
        """
        origin = origin or Origin()
        for what, n in (("user", n_users), ("item", n_items)):
            if not 0 < n < 1 << 31:
                raise DataError(f"{n} {what}s: expected 1 to {(1 << 31) - 1}; {what} ids must be dense, 0..n-1")
        label = {split: origin.files.get(split) or f"split {split!r}" for split in SPLITS}
        keys: dict[str, np.ndarray] = {}
        duplicates = {}
        for split in SPLITS:
            user, item = splits[split]
            if not len(user):
                raise DataError(f"{label[split]}: {split} is empty; every split needs interactions")
            for what, given, limit in (("user", user, n_users), ("item", item, n_items)):
                if int(given.min()) < 0 or int(given.max()) >= limit:
                    at = int(np.flatnonzero((given < 0) | (given >= limit))[0])
                    raise DataError(
                        f"{label[split]}: interaction {at} of {split} has {what} id {int(given[at])}, "
                        f"out of range 0..{limit - 1}"
                    )
            keys[split], duplicates[split] = _unique_keys(user, item, n_items)
        dropped = dict.fromkeys(SPLITS, 0)
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            both = _in_sorted(keys[b], keys[a])
            n = int(both.sum())
            if n and overlap != "drop":
                u, i = divmod(int(keys[b][both][0]), n_items)
                raise DataError(
                    f"{label[a]} and {label[b]}: {a} and {b} overlap in {n} interactions, the first is user "
                    f"{_original(origin.user_ids, u)!r}, item {_original(origin.item_ids, i)!r}; a pair may stand in "
                    "one split only (--overlap drop keeps it in train before val before test)"
                )
            if n:
                keys[b] = keys[b][~both]
                dropped[b] += n
            if not len(keys[b]):
                raise DataError(f"{label[b]}: {b} is empty once the pairs that stand in {a} are dropped")
        self._write_interactions(keys, n_items)
        counts = {split: len(keys[split]) for split in SPLITS}
        train_users, train_items = np.zeros(n_users, dtype=bool), np.zeros(n_items, dtype=bool)
        for user, item in _pairs(keys["train"], n_items):
            train_users[user] = train_items[item] = True
        cold = {s: int((~train_items[np.unique(keys[s] % n_items)]).sum()) for s in ("val", "test")}
        self._hash.update(f"{n_users}:{n_items}".encode())
        self.report = {
            "users": n_users,
            "items": n_items,
            "interactions": counts,
            "sparsity": 1 - sum(counts.values()) / (n_users * n_items),
            "cold_items": {"all": int((~train_items).sum()), **cold},
            "cold_users": int((~train_users).sum()),
            "duplicates_dropped": duplicates,
            "overlaps_dropped": dropped,
        }

    def _write_interactions(self, keys: dict[str, np.ndarray], n_items: int) -> None:
        with pq.ParquetWriter(self.tmp / "interactions.parquet", _INTERACTIONS, compression="zstd") as out:
            for code, split in enumerate(SPLITS):
                for user, item in _pairs(keys[split], n_items):
                    codes = pa.DictionaryArray.from_arrays(
                        pa.array(np.full(len(user), code, dtype=np.int8)), pa.array(SPLITS)
                    )
                    out.write_table(pa.table([user, item, codes], schema=_INTERACTIONS))
                self._hash.update(split.encode())
                self._hash.update(keys[split].data)

    def finish(
        self, user_ids: Any = None, item_ids: Any = None, provenance: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write ids and dataset.json and move the data set to its place. Returns dataset.json's content.

        user_ids, item_ids: original ids by dense id (array, list or a table with an `id` column); default 0..n-1.
        """
        if not self.report:
            raise DataError("a data set needs interactions")
        n_users, n_items = self.report["users"], self.report["items"]
        for name, (rows, source) in self._rows.items():
            if rows != n_items:
                raise DataError(
                    f"{source}: {rows} feature rows of {name!r} for {n_items} items; row i must belong to item i"
                )
        for what, ids, n in (("users", user_ids, n_users), ("items", item_ids, n_items)):
            table = ids if isinstance(ids, pa.Table) else pa.table({"id": np.arange(n) if ids is None else ids})
            if table.num_rows != n:
                raise DataError(f"{what}: {table.num_rows} ids for {n} {what}")
            pq.write_table(table, self.tmp / f"{what}.parquet")
        meta = {
            "schema_version": SCHEMA_VERSION,
            **self.report,
            "modalities": self.modalities,
            "lacking": {name: int((~has).sum()) for name, has in self._present.items()},
            "columns": self._columns,
            "fingerprint": self._hash.hexdigest()[:16],
            "provenance": provenance or {},
        }
        files = sorted(path for path in self.tmp.rglob("*") if path.is_file())
        meta["files"] = {path.relative_to(self.tmp).as_posix(): checksums.of_file(path) for path in files}
        (self.tmp / "dataset.json").write_text(json.dumps(checksums.stamped(meta), indent=2) + "\n")
        self.place.move()
        return meta


def _unique_keys(user: np.ndarray, item: np.ndarray, n_items: int) -> tuple[np.ndarray, int]:
    """Sorted distinct int64 keys user * n_items + item, and how many duplicates there were."""
    key = user.astype(np.int64)
    key *= n_items
    key += item
    key.sort()
    fresh = np.empty(len(key), dtype=bool)
    fresh[0] = True
    np.not_equal(key[1:], key[:-1], out=fresh[1:])
    duplicates = int(len(key) - np.count_nonzero(fresh))
    return (key[fresh] if duplicates else key), duplicates


def _in_sorted(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """bool [n]: which sorted distinct `values` stand in the sorted distinct `table`; work follows the shorter."""
    if len(values) <= len(table):
        at = np.minimum(np.searchsorted(table, values), len(table) - 1)
        return table[at] == values
    found = np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(values, table), len(values) - 1)
    found[at[values[at] == table]] = True
    return found


def _pairs(keys: np.ndarray, n_items: int, rows: int = 1 << 20) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """int32 users and items of int64 keys, in blocks."""
    for start in range(0, len(keys), rows):
        user, item = np.divmod(keys[start : start + rows], n_items)
        yield user.astype(np.int32), item.astype(np.int32)


def _original(ids: Any, dense: int) -> Any:
    """The original id of a dense id, as a plain value."""
    if ids is None:
        return dense
    value = ids[dense]
    return value.as_py() if isinstance(value, pa.Scalar) else getattr(value, "item", lambda: value)()
