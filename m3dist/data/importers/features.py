"""Features of items: rows by position, or by id; and flags of the items that have a modality.

Shapes: I items, d feature width, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.ids import Growing
from m3dist.data.importers.rows import BadRows, Where

BLOCK_BYTES = 1 << 25


@dataclass
class Feature:
    """One modality: `blocks()` gives the [I, d] matrix or row blocks of it; rows is I where it is known before.

    reading: what was taken for what, for people; whole: its type holds whole numbers only.
    """

    name: str
    file: str
    blocks: Callable[[], np.ndarray | Iterable[np.ndarray]]
    rows: int | None = None
    present: np.ndarray | None = None
    reading: str = "rows by position"
    whole: bool = False

    def select(self, keep: np.ndarray) -> Feature:
        """The rows of some items, bool [I]."""
        present = self.present[keep] if self.present is not None else None
        return replace(self, blocks=lambda: _selected(self.blocks(), keep), rows=int(keep.sum()), present=present)

    def padded(self, n_items: int) -> Feature:
        """With rows for n_items items, of which those behind the given rows lack the modality."""
        missing = n_items - (self.rows or 0)
        if missing <= 0:
            return self
        present = np.ones(self.rows or 0, dtype=bool) if self.present is None else self.present
        present = np.concatenate([present, np.zeros(missing, dtype=bool)])
        return replace(self, blocks=lambda: _padded(self.blocks(), missing), rows=n_items, present=present)


@dataclass
class Vectors:
    """One modality whose rows have ids: batches of ids and the values of those rows that have some.

    batches: place of a row, ids [b], values float32 [b', d], and which rows have values, bool [b].
    """

    name: str
    file: str
    batches: Callable[[BadRows], Iterator[tuple[Where, pa.Array, np.ndarray, np.ndarray]]]
    reading: str = "rows by id"
    whole: bool = False


@dataclass
class Placed:
    """Vectors while they are read: the code of each row's item, and the values."""

    source: Vectors
    codes: Growing = field(default_factory=Growing)
    chunks: list[np.ndarray] = field(default_factory=list)

    def add(self, codes: np.ndarray, values: np.ndarray, where: Where) -> None:
        """Codes [b'] of the items and their values [b', d]."""
        if self.chunks and self.chunks[0].shape[1] != values.shape[1]:
            raise DataError(f"{where(0)}: {values.shape[1]} feature values, {self.chunks[0].shape[1]} before")
        self.codes.append(codes)
        self.chunks.append(values)

    def place(self, dense: np.ndarray | None, n_items: int) -> Feature:
        """Rows by dense id; items without a row lack the modality."""
        codes = self.codes.take()
        rows = dense[codes] if dense is not None else codes
        present = np.zeros(n_items, dtype=bool)
        present[rows] = True
        if not self.chunks or not len(rows):
            raise DataError(f"{self.source.file}: no feature rows")
        out = np.zeros((n_items, self.chunks[0].shape[1]), dtype=np.float32)
        at = 0
        for chunk in self.chunks:
            out[rows[at : at + len(chunk)]] = chunk
            at += len(chunk)
        self.chunks = []
        flags = None if present.all() else present
        return Feature(self.source.name, self.source.file, lambda: out, n_items, flags, self.source.reading)


def pad(features: list[Feature], n_items: int) -> tuple[list[Feature], list[str]]:
    """Features with a row for each of n_items items: items behind the rows lack the modality, which a note says."""
    short = [f for f in features if f.rows is not None and f.rows < n_items]
    notes = [f"{f.file} has {f.rows:,} rows: the last {n_items - (f.rows or 0):,} items lack it" for f in short]
    return [feature.padded(n_items) for feature in features], notes


def array_feature(name: str, path: Path, array: np.ndarray, reading: str = "rows by position") -> Feature:
    """A matrix in memory as a modality. Raises DataError."""
    check_shape(path, array.shape)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path.name}: features must be numbers, got {array.dtype}")
    return Feature(name, path.name, lambda: array, array.shape[0], reading=reading, whole=array.dtype.kind != "f")


def check_shape(path: Path, shape: tuple[int, ...]) -> None:
    """Raises DataError unless the shape is [items, width], both above 0."""
    if len(shape) != 2 or not all(shape):
        raise DataError(
            f"{path.name}: expected [items, width] features, got shape {tuple(shape)}; --feature NAME=FILE chooses "
            "files"
        )


def open_npy(path: Path) -> np.ndarray:
    """A .npy array of numbers, memory-mapped. Raises DataError."""
    try:
        if not files.head(path).startswith(b"\x93NUMPY"):
            raise ValueError("it does not begin like one")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except files.NPY_ERRORS as error:
        raise DataError(f"{path.name}: not a .npy array of numbers ({files.first_line(error)})") from None


def npy_blocks(path: Path) -> Iterator[np.ndarray]:
    """Row blocks of a .npy matrix."""
    array = open_npy(path)
    rows = max(1, BLOCK_BYTES // (array.shape[1] * array.itemsize))
    for start in range(0, len(array), rows):
        if start and array.flags.c_contiguous:
            array = open_npy(path)  # a fresh map: pages that were read stop counting as this process's memory
        yield array[start : start + rows]


def flags(path: Path) -> np.ndarray:
    """bool [I] from a .npy file: which items have a modality."""
    if not path.is_file():
        raise DataError(f"{path.name}: no such file")
    array = np.asarray(open_npy(path))
    if array.ndim != 1 or array.dtype.kind not in "biu" or not np.isin(array, (0, 1)).all():
        raise DataError(
            f"{path.name}: expected one boolean per item, [items], got {array.dtype} of shape {array.shape}"
        )
    return array.astype(bool)


def assign_flags(features: list[Feature], given: dict[str, Path], folder: Path | None) -> tuple[list[str], set[Path]]:
    """Set `present` of features: `given` by modality name, otherwise has_<x>.npy in `folder` that plainly belongs.

    Returns notes on has_ files that belong to no modality, and the files that were looked at.
    """
    by_name = {feature.name: feature for feature in features}
    for name, path in given.items():
        if name not in by_name:
            raise DataError(f"{path.name}: flags of modality {name!r}, which is not among {', '.join(by_name) or '-'}")
        _set_flags(by_name[name], path)
    notes, seen = [], set(given.values())
    for path in sorted(folder.glob("has_*.npy")) if folder else []:
        if path in seen:
            continue
        seen.add(path)
        what = path.stem.removeprefix("has_")
        owners = [f for f in features if what == f.name or what == Path(f.file).stem.split("_")[0]]
        if len(owners) == 1 and owners[0].name not in given:
            _set_flags(owners[0], path)
        elif len(owners) != 1:
            notes.append(f"{path.name} belongs to no one modality and was left out; say --present NAME={path.name}")
    return notes, seen


def _set_flags(feature: Feature, path: Path) -> None:
    present = flags(path)
    if feature.rows is not None and len(present) != feature.rows:
        raise DataError(f"{path.name}: {len(present)} flags for the {feature.rows} rows of {feature.file}")
    feature.present = present if feature.present is None else feature.present & present


def values(columns: list[pa.Array], where: Where) -> tuple[np.ndarray, np.ndarray]:
    """float32 [b', d] features of a batch, and which of its rows have them, bool [b] (a null row lacks the modality).

    columns: one column of lists of one length (or of text such as "[0.1, 0.2]"), or one number column per dimension.
    """
    first = columns[0]
    if len(columns) == 1 and _is_listed_text(first):
        first = pc.split_pattern_regex(pc.utf8_trim(first, " []()"), r"[,;\s]+")
        columns = [first]
    lists = (
        pa.types.is_list(first.type) or pa.types.is_large_list(first.type) or pa.types.is_fixed_size_list(first.type)
    )
    if lists and len(columns) > 1:
        raise DataError(f"{where(0)}: expected one list column or number columns, got a list column among others")
    held = np.ones(len(first), dtype=bool)
    for column in columns:
        empty = pc.is_null(column)
        if pa.types.is_string(column.type):
            empty = pc.or_kleene(empty, pc.equal(column, "")).fill_null(True)
        held &= ~empty.to_numpy(zero_copy_only=False)
    if lists:
        kept = first.filter(pa.array(held))
        widths = pc.list_value_length(kept).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(widths != widths[:1])
        if len(odd):
            at = int(np.flatnonzero(held)[odd[0]])
            raise DataError(f"{where(at)}: {widths[odd[0]]} feature values, the rows before it have {widths[0]}")
        numbers = _floats(pc.list_flatten(kept), where).reshape(len(kept), -1 if len(kept) else 1)
    else:
        numbers = np.stack([_floats(column.filter(pa.array(held)), where) for column in columns], axis=1)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(bad):
        raise DataError(
            f"{where(int(np.flatnonzero(held)[bad[0]]))}: a feature is NaN, infinite or missing; clean it, or leave "
            "the row out where the item lacks the modality"
        )
    return numbers, held


def _is_listed_text(column: pa.Array) -> bool:
    if not pa.types.is_string(column.type):
        return False
    first = next((value for value in column.to_pylist() if value), "")
    return len(first.strip(" []()").replace(",", " ").split()) > 1


def _floats(array: pa.Array, where: Where) -> np.ndarray:
    try:
        if pa.types.is_string(array.type):
            array = pc.utf8_trim_whitespace(array)
        return pc.cast(array, pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{where(0)}: features must be numbers, got {array.type} ({files.first_line(error)[:100]})"
        ) from None


def _selected(blocks: np.ndarray | Iterable[np.ndarray], keep: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for block in [blocks] if isinstance(blocks, np.ndarray) else blocks:
        yield block[keep[start : start + len(block)]]
        start += len(block)


def _padded(blocks: np.ndarray | Iterable[np.ndarray], missing: int) -> Iterator[np.ndarray]:
    for block in [blocks] if isinstance(blocks, np.ndarray) else blocks:
        yield block
    yield np.zeros((missing, block.shape[1]), dtype=block.dtype)
