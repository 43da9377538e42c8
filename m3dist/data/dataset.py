"""The canonical data set on disk, memory-mapped when read; m3dist.data.writer validates it when it is written.

    interactions.parquet   user int32, item int32, split (train|val|test)
    features/<name>.npy    float32 or float16 [items, d]
    present/<name>.npy     bool [items], where items may lack that modality
    users.parquet items.parquet   original ids, row = dense id
    truth/<name>.npy       bool [d], planted data only: True where a dimension is invariant
    dataset.json           schema version, counts, widths, fingerprint, provenance

Shapes: n interactions, I items, d feature width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3dist import checksums

if TYPE_CHECKING:
    from m3dist.data.importers.options import Options

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")


class DataError(ValueError):
    """Data that cannot be used: the message names the file, what was expected and what to do."""


class Dataset:
    """A prepared data set. Opening reads dataset.json only; a split is read once, when asked for, or is `held` already.

    Raises DataError when the folder is not a prepared data set of this schema version.
    """

    def __init__(self, root: str | Path, held: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None):
        self.root, self.held = Path(root), dict(held or {})
        self._whole: set[str] = set()  # files that were found as they were written
        meta_path = self.root / "dataset.json"
        if not meta_path.is_file():
            raise DataError(f"{self.root}: not a prepared data set (no dataset.json); run `m3dist prepare` first")
        try:
            stated = json.loads(meta_path.read_text())
            version = stated["schema_version"]
            self.meta: dict[str, Any] = checksums.checked(stated) if version == SCHEMA_VERSION else stated
            self.n_users: int = self.meta["users"]
            self.n_items: int = self.meta["items"]
            self.modalities: dict[str, int] = self.meta["modalities"]
            self.fingerprint: str = self.meta["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{meta_path}: damaged ({error}); prepare the data set again") from None
        if wrong := _wrong(self.meta) if version == SCHEMA_VERSION else "":
            raise DataError(f"{meta_path}: damaged or changed ({wrong}); prepare the data set again")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{meta_path}: schema version {version}, this m3dist reads {SCHEMA_VERSION}; prepare it again"
            )

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open a prepared folder. Raises ValueError where it is none."""
        return cls(path)

    @classmethod
    def from_arrow(
        cls,
        interactions: Any,
        features: Mapping[str, Any] | None,
        out: str | Path,
        options: Options | None = None,
        items: Any = None,
    ) -> Dataset:
        """Prepare a data set at `out` from Arrow tables, as `m3dist prepare tables` does from files, and open it.

        interactions: a table (or what exports one: a RecordBatch, a frame of Polars) with columns of users and items,
        and of times, ratings or splits where they are wanted, under the names that `prepare` knows or that `options`
        gives. Ids are integers or text. features: by modality, a table of item ids with a column of vectors or a column
        a number, or an array [n, d] whose row i belongs to `items[i]` (without `items`: to item i). options: how to
        split and which rows count, `m3dist.Options.of(split="random", seed=0)`; none where a column says the split.
        items: ids in the order of arrays, or a table of ids and titles; where given, there are no others.

        The same content gives the same fingerprint, whichever way it came. Raises ValueError, in one line, on data or
        options that cannot be used; nothing is left at `out` then.
        """
        from m3dist.data import frames
        from m3dist.data.importers.options import Options

        frames.from_arrow(interactions, frames.each(features, frames.table), out, options or Options(), items)
        return cls(out)

    @classmethod
    def from_pandas(
        cls,
        interactions: Any,
        features: Mapping[str, Any] | None,
        out: str | Path,
        options: Options | None = None,
        items: Any = None,
    ) -> Dataset:
        """The same from pandas' DataFrames; features may be arrays, too. Row labels count where they have a name."""
        from m3dist.data import frames

        made = frames.each(features, frames.from_frame)
        if frames.is_frame(items):
            items = frames.from_frame(items, "items")
        return cls.from_arrow(frames.from_frame(interactions, "interactions"), made, out, options, items)

    @classmethod
    def from_arrays(
        cls,
        interactions: Mapping[str, Any],
        features: Mapping[str, Any] | None,
        out: str | Path,
        options: Options | None = None,
        items: Any = None,
    ) -> Dataset:
        """The same from arrays or sequences: interactions {"user": [n], "item": [n], "time": [n]}, features {modality:
        [I, d]} in the order of `items`, or {modality: {"id": [n], "vector": [n, d]}}."""
        from m3dist.data import frames

        made = frames.each(features, frames.from_columns)
        return cls.from_arrow(frames.from_columns(interactions, "interactions"), made, out, options, items)

    @property
    def name(self) -> str:
        return self.root.name

    def size(self, split: str) -> int:
        return self.meta["interactions"][split]

    def whole(self, name: str) -> Path:
        """The path of a file, read through once to see that it is as it was written.

        Raises DataError when it is damaged or missing. Data sets of earlier versions state no checksums.
        """
        path = self.root / name
        stated = self.meta.get("files", {}).get(name)
        if name not in self._whole and stated is not None:
            if not path.is_file() or checksums.of_file(path) != stated:
                what = "damaged (its checksum does not fit its content)" if path.is_file() else "missing"
                raise DataError(f"{path}: {what}; prepare the data set again")
            self._whole.add(name)
        return path

    def verify(self) -> None:
        """Read every file through. Raises DataError, which names the first that is damaged or missing."""
        for name in self.meta.get("files", {}):
            self.whole(name)

    def interactions(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of one split, int32 [n] each, sorted by user and item."""
        if split not in SPLITS:
            raise DataError(f"no split {split!r}; a data set has {', '.join(SPLITS)}")
        if split not in self.held:
            table = pq.read_table(
                self.whole("interactions.parquet"), columns=["user", "item"], filters=[("split", "=", split)]
            )
            self.held[split] = table["user"].to_numpy(), table["item"].to_numpy()
        return self.held[split]

    def features(self, name: str) -> np.ndarray:
        """Features of one modality as they were given, [I, d], memory-mapped."""
        if name not in self.modalities:
            raise DataError(f"{self.root}: no modality {name!r}; it has {', '.join(self.modalities) or 'none'}")
        return np.load(self.whole(f"features/{name}.npy"), mmap_mode="r", allow_pickle=False)

    def present(self, name: str) -> np.ndarray:
        """bool [I]: which items have this modality."""
        path = self.whole(f"present/{name}.npy")
        return np.load(path, allow_pickle=False) if path.is_file() else np.ones(self.n_items, dtype=bool)

    def truth(self, name: str) -> np.ndarray | None:
        """bool [d], True where a planted dimension is invariant; None for data that is not planted."""
        path = self.whole(f"truth/{name}.npy")
        return np.load(path, allow_pickle=False) if path.is_file() else None

    @cached_property
    def user_ids(self) -> pa.ChunkedArray:
        """Original user ids; position = dense id."""
        return pq.read_table(self.whole("users.parquet"), columns=["id"])["id"]

    @cached_property
    def item_ids(self) -> pa.ChunkedArray:
        return pq.read_table(self.whole("items.parquet"), columns=["id"])["id"]

    @cached_property
    def degrees(self) -> tuple[np.ndarray, np.ndarray]:
        """Training interactions of each user and of each item, int64 [U] and [I]."""
        user, item = self.interactions("train")
        return np.bincount(user, minlength=self.n_users), np.bincount(item, minlength=self.n_items)


def _wrong(meta: dict[str, Any]) -> str:
    """What a dataset.json holds that `prepare` does not write, where it would be taken for sizes or files' names."""
    for key in ("users", "items"):
        if type(meta[key]) is not int or not 0 < meta[key] < 1 << 31:
            return f"{key}: {str(meta[key])[:40]!r} is no number of them"
    modalities = meta["modalities"]
    if not isinstance(modalities, dict) or not all(re.fullmatch(r"[\w-]+", name) for name in modalities):
        return "modalities: a name may hold letters, digits, - and _ only"
    rows = sum(meta["interactions"].values()) if isinstance(meta.get("interactions"), dict) else -1
    return "" if isinstance(rows, int) and rows >= 0 else "interactions: expected a number for each split"
