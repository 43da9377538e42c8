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
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any

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
    """A prepared data set. Opening reads dataset.json only; a split is read once, when asked for, or is `held` already.

    Raises DataError when the folder is not a prepared data set of this schema version.
    """

    def __init__(self, root: str | Path, held: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None):
        self.root, self.held = Path(root), dict(held or {})
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
        except (ValueError, KeyError, TypeError) as error:
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
        if split not in SPLITS:
            raise DataError(f"no split {split!r}; a data set has {', '.join(SPLITS)}")
        if split not in self.held:
            table = pq.read_table(
                self.root / "interactions.parquet", columns=["user", "item"], filters=[("split", "=", split)]
            )
            self.held[split] = table["user"].to_numpy(), table["item"].to_numpy()
        return self.held[split]

    def features(self, name: str) -> np.ndarray:
        """Features of one modality as they were given, [I, d], memory-mapped."""
        if name not in self.modalities:
            raise DataError(f"{self.root}: no modality {name!r}; it has {', '.join(self.modalities) or 'none'}")
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

    @cached_property
    def degrees(self) -> tuple[np.ndarray, np.ndarray]:
        """Training interactions of each user and of each item, int64 [U] and [I]."""
        user, item = self.interactions("train")
        return np.bincount(user, minlength=self.n_users), np.bincount(item, minlength=self.n_items)


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
        self.dst = Path(dst).absolute()
        # a name of its own, so that two writers never share a folder
        self.tmp = self.dst.with_name(f".{self.dst.name}.{uuid.uuid4().hex[:8]}.partial")
        self.modalities: dict[str, int] = {}
        self.report: dict[str, Any] = {}
        self._hash = hashlib.sha256()
        self._rows: dict[str, tuple[int, str]] = {}  # modality: rows, where they came from
        self._present: dict[str, np.ndarray] = {}

    def __enter__(self) -> Writer:
        empty = not self.dst.exists() or (self.dst.is_dir() and not any(self.dst.iterdir()))
        if not empty and not (self.dst / "dataset.json").is_file():
            raise DataError(f"{self.dst}: exists and is not a prepared data set; choose another destination")
        try:
            (self.tmp / "features").mkdir(parents=True)
        except OSError as error:
            raise DataError(f"{self.dst}: cannot write there ({error.strerror})") from None
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        shutil.rmtree(self.tmp, ignore_errors=True)

    def features(
        self, name: str, blocks: np.ndarray | Iterable[np.ndarray], present: np.ndarray | None = None, source: str = ""
    ) -> None:
        """Store one modality. `blocks` is [I, d] or row blocks of it; float16 stays, other types become float32.

        Blocks go to disk as they come, so memory holds one block. The first block sets width and type.
        present: bool [I], False where an item lacks the modality (its row is zeroed and may hold anything).
        """
        source = source or name
        if not name.replace("_", "").replace("-", "").isalnum():
            raise DataError(f"{source}: modality name {name!r} may hold letters, digits, - and _ only")
        if name in self.modalities:
            raise DataError(f"{source}: modality {name!r} is given twice")
        if present is not None:
            present = _flags(present, source)
        path = self.tmp / "features" / f"{name}.npy"
        rows, width = 0, 0
        dtype: np.dtype = np.dtype(np.float32)
        with path.open("w+b") as out:
            for block in _row_blocks(blocks):
                if block.ndim != 2 or block.shape[1] == 0:
                    raise DataError(f"{source}: expected [items, width] features, got shape {tuple(block.shape)}")
                if block.dtype.kind not in "fiub":
                    raise DataError(f"{source}: features must be numbers, got {block.dtype}")
                if not len(block):
                    continue
                if not rows:
                    width = block.shape[1]
                    dtype = np.dtype(np.float16 if block.dtype == np.float16 else np.float32)
                    _npy_header(out, rows, width, dtype)
                    self._hash.update(f"{name}:{width}:{dtype}".encode())
                if block.shape[1] != width:
                    raise DataError(f"{source}: row {rows} has {block.shape[1]} values, the rows before it {width}")
                block = _finite(block, dtype, rows, present, source)
                out.write(block.data)
                self._hash.update(block.data)
                rows += len(block)
            if not rows:
                raise DataError(f"{source}: no feature rows")
            _npy_header(out, rows, width, dtype)
        if present is not None:
            if len(present) != rows:
                raise DataError(f"{source}: {rows} feature rows and {len(present)} flags of `present`")
            if not present.all():
                (self.tmp / "present").mkdir(exist_ok=True)
                np.save(self.tmp / "present" / f"{name}.npy", present)
                self._hash.update(np.packbits(present).tobytes())
                self._present[name] = present
        self.modalities[name] = width
        self._rows[name] = rows, source

    def truth(self, name: str, invariant: np.ndarray) -> None:
        """Store which dimensions of a planted modality are invariant, bool [d]."""
        (self.tmp / "truth").mkdir(exist_ok=True)
        np.save(self.tmp / "truth" / f"{name}.npy", invariant.astype(bool))

    def interactions(
        self,
        n_users: int,
        n_items: int,
        splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
        *,
        overlap: str = "error",
        files: Mapping[str, str] | None = None,
        ids: tuple[Any, Any] = (None, None),
    ) -> None:
        """Store dense (user, item) pairs per split: validated, de-duplicated, sorted by user and item.

        overlap: what a pair in two splits means. "error" refuses; "drop" keeps it in train before val before test.
        files: the file that each split came from, and ids: original (user, item) ids by dense id, for messages.
        """
        for what, n in (("user", n_users), ("item", n_items)):
            if not 0 < n < 1 << 31:
                raise DataError(f"{n} {what}s: expected 1 to {(1 << 31) - 1}; {what} ids must be dense, 0..n-1")
        label = {split: (files or {}).get(split) or f"split {split!r}" for split in SPLITS}
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
                    f"{_original(ids[0], u)!r}, item {_original(ids[1], i)!r}; a pair may stand in one split "
                    "only (--overlap drop keeps it in train before val before test)"
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
            "lacking": {name: int((~flags).sum()) for name, flags in self._present.items()},
            "fingerprint": self._hash.hexdigest()[:16],
            "provenance": provenance or {},
        }
        (self.tmp / "dataset.json").write_text(json.dumps(meta, indent=2) + "\n")
        if self.dst.exists():  # moved aside first, so that a failed rename never leaves half of each
            old = self.tmp.with_suffix(".old")
            self.dst.replace(old)
            self.tmp.replace(self.dst)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self.tmp.replace(self.dst)
        return meta


def _row_blocks(blocks: np.ndarray | Iterable[np.ndarray], rows: int = 65536) -> Iterator[np.ndarray]:
    if isinstance(blocks, np.ndarray):
        for start in range(0, max(len(blocks) if blocks.ndim else 0, 1), rows):
            yield blocks[start : start + rows] if blocks.ndim else blocks
    else:
        yield from blocks


def _npy_header(out: IO[bytes], rows: int, width: int, dtype: np.dtype) -> None:
    """Write a .npy header at the start of `out`, at the same length for every number of rows."""
    head = np.lib.format.magic(1, 0)
    fields = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({rows}, {width}), }}".encode()
    out.seek(0)
    out.write(head + (118).to_bytes(2, "little") + fields.ljust(117) + b"\n")


def _flags(present: np.ndarray, source: str) -> np.ndarray:
    """bool [I] of flags given as booleans or as 0 and 1."""
    if present.ndim != 1 or present.dtype.kind not in "biuf" or not np.isin(present, (0, 1)).all():
        raise DataError(f"{source}: the flags of `present` must be one boolean per item, [items]")
    return present.astype(bool)


def _finite(block: np.ndarray, dtype: np.dtype, start: int, present: np.ndarray | None, source: str) -> np.ndarray:
    """A feature block as contiguous `dtype`, rows of absent items zeroed; refuses NaN and infinity elsewhere."""
    with np.errstate(over="ignore", invalid="ignore"):
        block = np.ascontiguousarray(block, dtype=dtype)
    if present is not None:
        if start + len(block) > len(present):
            raise DataError(f"{source}: more feature rows than the {len(present)} flags of `present`")
        block = np.where(present[start : start + len(block), None], block, dtype.type(0))
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        raise DataError(
            f"{source}: row {start + int(bad[0])} holds NaN or infinity as {dtype} ({len(bad)} such rows in this "
            "block); clean the features, or mark the items as lacking the modality"
        )
    return block


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


def _pairs(keys: np.ndarray, n_items: int, rows: int = 1 << 22) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
