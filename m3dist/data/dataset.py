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
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3dist import checksums
from m3dist.data import shards
from m3dist.data.shards import Part

if TYPE_CHECKING:
    from m3dist.data.importers.options import Options

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")
_BLOCK, _ROWS = 1 << 20, 1 << 16  # interactions that are counted at once, and that are read


class DataError(ValueError):
    """Data that cannot be used: the message names the file, what was expected and what to do."""


class Dataset:
    """A prepared data set. Opening reads dataset.json only; a split is read once, when asked for, or is `held` already.

    Raises DataError when the folder is not a prepared data set of this schema version.
    """

    def __init__(self, root: str | Path, held: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None):
        self.root, self.held = Path(root), dict(held or {})
        self._parts: dict[tuple[str, tuple[int, int]], tuple[np.ndarray, np.ndarray]] = {}
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
            self.held[split] = self._read(split, (0, self.n_users))
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
        """Training interactions of each user and of each item, int64 [U] and [I]; never more than a block of them in
        memory at once."""
        users, items = np.zeros(self.n_users, dtype=np.int64), np.zeros(self.n_items, dtype=np.int64)
        for user, item in self._train():
            low, high = (user[0], user[-1] + 1) if len(user) else (0, 0)
            users[low:high] += np.bincount(user - low)
            items += np.bincount(item, minlength=self.n_items)
        return users, items

    def _train(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The training interactions, held or read, in blocks."""
        if "train" not in self.held:
            yield from self._blocks("train", self._groups("train"))
            return
        user, item = self.held["train"]
        for start in range(0, len(user), _BLOCK):
            yield user[start : start + _BLOCK], item[start : start + _BLOCK]

    @cached_property
    def shards(self) -> tuple[np.ndarray, np.ndarray]:
        """The shards of users, see `data.shards.starts`."""
        return shards.starts(self.degrees[0])

    def part(self, rank: int, world: int) -> Part:
        """The shards that worker `rank` of `world` owns."""
        if world == 1:
            self.interactions("train")  # which it will hold: they are read once
        return shards.part(self.shards, rank, world)

    def of_users(self, split: str, users: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The interactions of a split that users from the first to before the second have, as `interactions` gives all;
        of a file, only the row groups that may hold some are read."""
        if split in self.held or users == (0, self.n_users):
            user, item = self.interactions(split)
            mine = _of(users, user)
            return user[mine], item[mine]
        if (split, users) not in self._parts:
            self._parts[split, users] = self._read(split, users)
        return self._parts[split, users]

    def _read(self, split: str, users: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of some users' interactions in a split; of others only a block is in memory at a time."""
        groups = self._groups(split, users)
        user_n, item_n = (np.empty(sum(groups.values()), dtype=np.int32) for _ in range(2))  # of what they may hold
        n = 0
        for user, item in self._blocks(split, groups):
            mine = _of(users, user)
            end = n + mine.stop - mine.start
            user_n[n:end], item_n[n:end] = user[mine], item[mine]
            n = end
        return user_n[:n], item_n[:n]

    def _groups(self, split: str, users: tuple[int, int] | None = None) -> dict[int, int]:
        """The row groups that may hold interactions of these users in a split, and how many rows each has."""
        found = pq.read_metadata(self.whole("interactions.parquet"))
        each = {number: found.row_group(number) for number in range(found.num_row_groups)}
        wanted = users or (0, self.n_users)
        return {number: group.num_rows for number, group in each.items() if _may_hold(group, split, wanted)}

    def _blocks(self, split: str, groups: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Users and items of a split's interactions, in small blocks."""
        with pq.ParquetFile(self.root / "interactions.parquet") as file:
            columns = ["user", "item", "split"]
            for batch in file.iter_batches(_ROWS, [*groups], columns, use_threads=False):
                kept = pc.equal(batch["split"].cast(pa.string()), split)
                yield batch["user"].filter(kept).to_numpy(), batch["item"].filter(kept).to_numpy()


def _of(users: tuple[int, int], user_n: np.ndarray) -> slice:
    """Where users from the first to before the second stand among ascending ones."""
    return slice(*np.searchsorted(user_n, np.array(users, dtype=user_n.dtype)))  # of another type all would be copied


def _may_hold(group: pq.RowGroupMetaData, split: str, users: tuple[int, int]) -> bool:
    """Whether a row group's statistics leave it open that it holds interactions of these users in a split."""
    by_name = {group.column(at).path_in_schema: group.column(at).statistics for at in range(group.num_columns)}
    user, splits = by_name["user"], by_name["split"]
    if user is not None and user.has_min_max and (user.min >= users[1] or user.max < users[0]):
        return False
    return splits is None or not splits.has_min_max or splits.min <= split <= splits.max


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
