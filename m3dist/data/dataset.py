"""The canonical data set on disk: validated when written, memory-mapped when read.

    interactions.parquet   user int32, item int32, split (train|val|test)
    features/<name>.npy    float32 or float16 [items, d]
    present/<name>.npy     bool [items], where items may lack that modality
    users.parquet items.parquet   original ids, row = dense id
    truth/<name>.npy       bool [d], planted data only: True where a dimension is invariant
    dataset.json           schema version, counts, widths, fingerprint, provenance

Shapes: n interactions, I items, d feature width.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")
_INTERACTIONS = pa.schema(
    [("user", pa.int32()), ("item", pa.int32()), ("split", pa.dictionary(pa.int8(), pa.string()))]
)


class DataError(ValueError):
    """Data that cannot be used: the message names the file, what was expected and what to do."""


class Dataset:
    """A prepared data set. Opening reads dataset.json only; arrays load when asked for.

    Raises DataError when the folder is not a prepared data set of this schema version.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        meta_path = self.root / "dataset.json"
        if not meta_path.is_file():
            raise DataError(f"{self.root}: not a prepared data set (no dataset.json); run `m3dist prepare` first")
        try:
            self.meta: dict[str, Any] = json.loads(meta_path.read_text())
            version = self.meta["schema_version"]
            self.n_users: int = self.meta["users"]
            self.n_items: int = self.meta["items"]
            self.modalities: dict[str, int] = self.meta["modalities"]
            self.fingerprint: str = self.meta["fingerprint"]
        except (json.JSONDecodeError, KeyError) as error:
            raise DataError(f"{meta_path}: damaged ({error}); prepare the data set again") from None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{meta_path}: schema version {version}, this m3dist reads {SCHEMA_VERSION}; prepare it again"
            )

    @property
    def name(self) -> str:
        return self.root.name

    def size(self, split: str) -> int:
        return self.meta["interactions"][split]

    def interactions(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of one split, int32 [n] each, sorted by user and item."""
        table = pq.read_table(
            self.root / "interactions.parquet", columns=["user", "item"], filters=[("split", "=", split)]
        )
        return table["user"].to_numpy(), table["item"].to_numpy()

    def features(self, name: str) -> np.ndarray:
        """Features of one modality as they were given, [I, d], memory-mapped."""
        return np.load(self.root / "features" / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def present(self, name: str) -> np.ndarray:
        """bool [I]: which items have this modality."""
        path = self.root / "present" / f"{name}.npy"
        return np.load(path, allow_pickle=False) if path.is_file() else np.ones(self.n_items, dtype=bool)

    def truth(self, name: str) -> np.ndarray | None:
        """bool [d], True where a planted dimension is invariant; None for data that is not planted."""
        path = self.root / "truth" / f"{name}.npy"
        return np.load(path, allow_pickle=False) if path.is_file() else None

    @cached_property
    def user_ids(self) -> pa.ChunkedArray:
        """Original user ids; position = dense id."""
        return pq.read_table(self.root / "users.parquet", columns=["id"])["id"]

    @cached_property
    def item_ids(self) -> pa.ChunkedArray:
        return pq.read_table(self.root / "items.parquet", columns=["id"])["id"]

    def degrees(self) -> tuple[np.ndarray, np.ndarray]:
        """Training interactions of each user and of each item, int64 [U] and [I]."""
        user, item = self.interactions("train")
        return np.bincount(user, minlength=self.n_users), np.bincount(item, minlength=self.n_items)


class Writer:
    """Writes a data set beside its destination and moves it there when it is complete and valid.

    Use as a context manager: on an error nothing is left behind.

    with Writer(dst) as out:
        out.features("visual", array)                  # float32/float16 [I, d] or an iterator of row blocks
        out.interactions(users, items, splits)         # dense ids; splits: {"train": (user, item), ...}
        summary = out.finish(users=ids, items=ids, provenance={...})

    Raises DataError on everything that a data set must not contain.
    """

    def __init__(self, dst: str | Path):
        self.dst = Path(dst)
        self.tmp = self.dst.with_name(f".{self.dst.name}.partial")
        self.modalities: dict[str, int] = {}
        self.report: dict[str, Any] = {}
        self._hash = hashlib.sha256()
        self._rows: dict[str, int] = {}
        self._present: dict[str, np.ndarray] = {}
        self._cold: dict[str, Any] = {}

    def __enter__(self) -> Writer:
        if self.dst.exists() and (not self.dst.is_dir() or any(self.dst.iterdir())):
            if not (self.dst / "dataset.json").is_file():
                raise DataError(f"{self.dst}: exists and is not a prepared data set; choose another destination")
        shutil.rmtree(self.tmp, ignore_errors=True)
        (self.tmp / "features").mkdir(parents=True)
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        shutil.rmtree(self.tmp, ignore_errors=True)

    def features(
        self, name: str, blocks: np.ndarray | Iterable[np.ndarray], present: np.ndarray | None = None, source: str = ""
    ) -> None:
        """Store one modality. `blocks` is [I, d] or row blocks of it; float16 stays, other types become float32.

        present: bool [I], False where an item lacks the modality (its row is zeroed and may hold anything).
        """
        source = source or name
        if not name.replace("_", "").replace("-", "").isalnum():
            raise DataError(f"{source}: modality name {name!r} may hold letters, digits, - and _ only")
        if name in self.modalities:
            raise DataError(f"{source}: modality {name!r} is given twice")
        rows = 0
        out: np.ndarray | None = None
        chunks: list[np.ndarray] = []
        for block in _row_blocks(blocks):
            if block.ndim != 2 or block.shape[1] == 0:
                raise DataError(f"{source}: expected [items, width] features, got shape {tuple(block.shape)}")
            if block.dtype.kind not in "fiub":
                raise DataError(f"{source}: features must be numbers, got {block.dtype}")
            block = block if block.dtype == np.float16 else block.astype(np.float32)
            if present is not None:
                if rows + len(block) > len(present):
                    raise DataError(f"{source}: more feature rows than the {len(present)} flags of `present`")
                block = np.where(present[rows : rows + len(block), None], block, block.dtype.type(0))
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if len(bad):
                raise DataError(
                    f"{source}: row {rows + int(bad[0])} holds NaN or infinity ({len(bad)} such rows in this block); "
                    "clean the features, or mark the items as lacking the modality"
                )
            rows += len(block)
            chunks.append(block)
        if not chunks:
            raise DataError(f"{source}: no feature rows")
        width = chunks[0].shape[1]
        path = self.tmp / "features" / f"{name}.npy"
        out = np.lib.format.open_memmap(path, mode="w+", dtype=chunks[0].dtype, shape=(rows, width))
        at = 0
        for block in chunks:
            out[at : at + len(block)] = block
            self._hash.update(np.ascontiguousarray(block).tobytes())
            at += len(block)
        out.flush()
        if present is not None and not present.all():
            (self.tmp / "present").mkdir(exist_ok=True)
            np.save(self.tmp / "present" / f"{name}.npy", present.astype(bool))
            self._hash.update(np.packbits(present).tobytes())
            self._present[name] = present
        self.modalities[name] = width
        self._rows[name] = rows

    def truth(self, name: str, invariant: np.ndarray) -> None:
        """Store which dimensions of a planted modality are invariant, bool [d]."""
        (self.tmp / "truth").mkdir(exist_ok=True)
        np.save(self.tmp / "truth" / f"{name}.npy", invariant.astype(bool))

    def interactions(self, n_users: int, n_items: int, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Store dense (user, item) pairs per split: validated, de-duplicated, sorted by user and item."""
        path = self.tmp / "interactions.parquet"
        keys: dict[str, np.ndarray] = {}
        counts, duplicates = {}, {}
        for split in SPLITS:
            user, item = splits[split]
            if not len(user):
                raise DataError(f"split {split!r} is empty; every split needs interactions")
            for what, ids, limit in (("user", user, n_users), ("item", item, n_items)):
                low, high = int(ids.min()), int(ids.max())
                if low < 0 or high >= limit:
                    at = int(np.flatnonzero((ids < 0) | (ids >= limit))[0])
                    raise DataError(
                        f"split {split!r}, interaction {at}: {what} id {int(ids[at])} is out of range 0..{limit - 1}"
                    )
            key = user.astype(np.int64)
            key *= n_items
            key += item
            key.sort()
            fresh = np.empty(len(key), dtype=bool)
            fresh[0] = True
            np.not_equal(key[1:], key[:-1], out=fresh[1:])
            duplicates[split] = int(len(key) - fresh.sum())
            keys[split] = key[fresh] if duplicates[split] else key
            counts[split] = len(keys[split])
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            small, large = sorted((keys[a], keys[b]), key=len)
            at = np.minimum(np.searchsorted(large, small), len(large) - 1)
            both = small[large[at] == small]
            if len(both):
                user, item = divmod(int(both[0]), n_items)
                raise DataError(
                    f"splits {a!r} and {b!r} overlap in {len(both)} interactions, the first is user {user}, item "
                    f"{item}; a pair may stand in one split only"
                )
        train_items = np.zeros(n_items, dtype=bool)
        with pq.ParquetWriter(path, _INTERACTIONS, compression="zstd") as out:
            for code, split in enumerate(SPLITS):
                for start in range(0, len(keys[split]), 1 << 22):
                    part = keys[split][start : start + (1 << 22)]
                    user, item = (x.astype(np.int32) for x in np.divmod(part, n_items))
                    if split == "train":
                        train_items[item] = True
                    codes = pa.DictionaryArray.from_arrays(
                        pa.array(np.full(len(part), code, dtype=np.int8)), pa.array(SPLITS)
                    )
                    out.write_table(pa.table([user, item, codes], schema=_INTERACTIONS))
                    self._hash.update(part.tobytes())
                self._hash.update(split.encode())
        total = sum(counts.values())
        cold = {s: int((~train_items[np.unique(keys[s] % n_items)]).sum()) for s in ("val", "test")}
        self.report = {
            "users": n_users,
            "items": n_items,
            "interactions": counts,
            "sparsity": 1 - total / (n_users * n_items),
            "cold_items": {"all": int((~train_items).sum()), **cold},
            "duplicates_dropped": duplicates,
        }

    def finish(
        self, user_ids: Any = None, item_ids: Any = None, provenance: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write ids and dataset.json and move the data set to its place. Returns dataset.json's content."""
        if not self.report:
            raise DataError("a data set needs interactions")
        n_users, n_items = self.report["users"], self.report["items"]
        for name, rows in self._rows.items():
            if rows != n_items:
                raise DataError(
                    f"features of {name!r}: {rows} rows for {n_items} items; row i must belong to item i of the data"
                )
        for name, flags in self._present.items():
            if len(flags) != n_items:
                raise DataError(f"present flags of {name!r}: {len(flags)} for {n_items} items")
        for what, ids, n in (("users", user_ids, n_users), ("items", item_ids, n_items)):
            table = ids if isinstance(ids, pa.Table) else pa.table({"id": np.arange(n) if ids is None else ids})
            if table.num_rows != n:
                raise DataError(f"{what}: {table.num_rows} ids for {n} {what}")
            pq.write_table(table, self.tmp / f"{what}.parquet")
        meta = {
            "schema_version": SCHEMA_VERSION,
            **self.report,
            "modalities": self.modalities,
            "lacking": {name: int((~flags).sum()) for name, flags in self._present.items()},
            "fingerprint": self._hash.hexdigest()[:16],
            "provenance": provenance or {},
        }
        (self.tmp / "dataset.json").write_text(json.dumps(meta, indent=2) + "\n")
        if self.dst.exists():
            shutil.rmtree(self.dst)
        self.dst.parent.mkdir(parents=True, exist_ok=True)
        self.tmp.replace(self.dst)
        return meta


def _row_blocks(blocks: np.ndarray | Iterable[np.ndarray], rows: int = 65536) -> Iterator[np.ndarray]:
    if isinstance(blocks, np.ndarray):
        for start in range(0, max(len(blocks), 1), rows):
            yield blocks[start : start + rows]
    else:
        yield from blocks
