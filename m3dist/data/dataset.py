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
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3dist import checksums

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
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{meta_path}: schema version {version}, this m3dist reads {SCHEMA_VERSION}; prepare it again"
            )

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
