"""Writes the canonical data set (see m3dist.data.dataset): everything is validated on its way to disk.

Shapes: n interactions, I items, d feature width, b rows of a block.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3dist import checksums
from m3dist.data.blocks import ColumnStatistics, finite, flags, npy_header, row_blocks
from m3dist.data.dataset import SCHEMA_VERSION, SPLITS, DataError
from m3dist.data.keys import Origin, Stored, need_rows, recut, settle
from m3dist.data.place import Place

_INTERACTIONS = pa.schema(
    [("user", pa.int32()), ("item", pa.int32()), ("split", pa.dictionary(pa.int8(), pa.string()))]
)


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
        for split in SPLITS:
            user, item = splits[split]
            need_rows(split, len(user), origin)
            for what, given, limit in (("user", user, n_users), ("item", item, n_items)):
                if int(given.min()) < 0 or int(given.max()) >= limit:
                    at = int(np.flatnonzero((given < 0) | (given >= limit))[0])
                    raise DataError(
                        f"{origin.label(split)}: interaction {at} of {split} has {what} id {int(given[at])}, "
                        f"out of range 0..{limit - 1}"
                    )
        self.stored((n_users, n_items), settle(splits, n_items), overlap, origin)

    def stored(
        self, shape: tuple[int, int], found: Stored, overlap: str = "error", origin: Origin | None = None
    ) -> None:
        """Store interactions that are sorted keys already, in blocks, of which memory holds one.

        shape: numbers of users and items; overlap, origin: see `interactions`.
        """
        n_users, n_items = shape
        dropped = found.counted.check(overlap, n_items, origin or Origin())
        counts = dict.fromkeys(SPLITS, 0)
        train_users, seen = np.zeros(n_users, dtype=bool), {split: np.zeros(n_items, dtype=bool) for split in SPLITS}
        with pq.ParquetWriter(self.tmp / "interactions.parquet", _INTERACTIONS, compression="zstd") as out:
            for code, split in enumerate(SPLITS):
                self._hash.update(split.encode())
                for keys in recut(found.keys[split]):
                    user, item = (x.astype(np.int32) for x in np.divmod(keys, n_items))
                    codes = pa.DictionaryArray.from_arrays(
                        pa.array(np.full(len(user), code, dtype=np.int8)), pa.array(SPLITS)
                    )
                    out.write_table(pa.table([user, item, codes], schema=_INTERACTIONS))
                    self._hash.update(np.ascontiguousarray(keys).data)
                    counts[split] += len(keys)
                    seen[split][item] = True
                    if split == "train":
                        train_users[user] = True
        self._hash.update(f"{n_users}:{n_items}".encode())
        cold = {split: int((seen[split] & ~seen["train"]).sum()) for split in ("val", "test")}
        self.report = {
            "users": n_users,
            "items": n_items,
            "interactions": counts,
            "sparsity": 1 - sum(counts.values()) / (n_users * n_items),
            "cold_items": {"all": int((~seen["train"]).sum()), **cold},
            "cold_users": int((~train_users).sum()),
            "duplicates_dropped": found.counted.duplicates,
            "overlaps_dropped": dropped,
        }

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
