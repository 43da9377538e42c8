"""Feature files of every kind, by what is in them. Nothing in a file can run code.

.npy             a matrix, or a pickled dict of vectors
.npz .h5 .hdf5   one matrix; a matrix with ids; or a vector per id
.pt .pth         a tensor, or a dict of tensors
.pkl .pickle     an array, or a dict of vectors
.json            a dict of vectors
tables           CSV, Parquet, Arrow, JSON lines: a row per item
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m3dist.data.dataset import DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers import files, jsons, names
from m3dist.data.importers.features import Feature, Vectors
from m3dist.data.importers.npz import read_npz
from m3dist.data.importers.opening import SUFFIXES as TABLE_SUFFIXES
from m3dist.data.importers.opening import Quotings, open_table
from m3dist.data.importers.options import Columns, Text
from m3dist.data.importers.pickles import Array, Sparse, flat_or_error, load_npy, load_pickle
from m3dist.data.importers.rows import BadRows, Where
from m3dist.data.importers.table import ITEMS_ID, Table
from m3dist.data.importers.values import Reread

ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5", ".pkl", ".pickle")
SUFFIXES = (*ARRAY_SUFFIXES, *TABLE_SUFFIXES)
_BATCH = 1 << 14
_SPARSE = "{}: a sparse matrix, expected dense features; --feature NAME=FILE chooses files"


def open_feature(
    name: str, path: Path, columns: Columns, text: Text | None = None, quotings: Quotings | None = None
) -> Feature | Vectors:
    """One modality from a file of any kind, or from one array of it: FILE#ARRAY. Raises DataError."""
    path, key = split_key(path)
    if not path.exists():
        raise DataError(f"{path.name}: no such feature file")
    if not path.is_dir():
        files.need_content(path)
    suffix = files.suffix(path)
    magic = b"" if path.is_dir() else files.head(path)
    if suffix == ".npy" or magic.startswith(b"\x93NUMPY"):
        return _npy(name, path)
    if suffix == ".npz":
        arrays = read_npz(path)
        if {"format", "shape", "data"} <= arrays.keys():
            raise DataError(_SPARSE.format(path.name))
        return _bundle(name, path, arrays, key)
    if suffix in (".pt", ".pth"):
        from m3dist.data.importers.tensors import load_pt

        content = load_pt(path)
        return _array(name, path, content) if isinstance(content, np.ndarray) else _bundle(name, path, content, key)
    if suffix in (".h5", ".hdf5") or magic.startswith(b"\x89HDF"):
        from m3dist.data.importers.hdf5 import read_hdf5

        return _bundle(name, path, read_hdf5(path), key)
    if suffix in (".pkl", ".pickle"):
        return _content(name, path, load_pickle(path))
    table = open_table(path, text, quotings)
    if suffix == ".json" and not isinstance(table, jsons.JsonLines):
        content = jsons.load(path)
        if isinstance(content, dict):
            return _content(name, path, content)
    return _table(name, path, table, columns)


def is_ambiguous(path: Path) -> bool:
    """Whether files of this kind often hold something else than features, so that a folder may hold one by chance."""
    return files.suffix(path) in (".npz", ".h5", ".hdf5", ".pkl", ".pickle", ".pth")


def split_key(path: Path) -> tuple[Path, str]:
    """FILE#ARRAY as the file and the array's name, unless a file of that whole name exists."""
    if path.exists() or "#" not in path.name:
        return path, ""
    file, _, key = path.name.rpartition("#")
    return path.with_name(file), key


def _npy(name: str, path: Path) -> Feature | Vectors:
    try:
        array = feat.open_npy(path)
    except DataError:
        if not files.head(path).startswith(b"\x93NUMPY"):
            raise
        content = load_npy(path)  # a pickle, which this refuses or reads without running anything
        if content.dtype == object and content.shape == () and isinstance(content.item(), dict):
            return _content(name, path, content.item())
        raise
    feat.check_shape(path, array.shape)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path.name}: features must be numbers, got {array.dtype}")
    whole = array.dtype.kind != "f"
    return Feature(name, path.name, lambda: feat.npy_blocks(path), rows=array.shape[0], whole=whole)


def _array(name: str, path: Path, array: np.ndarray) -> Feature:
    feat.check_shape(path, array.shape)
    if array.dtype.kind != "f":
        raise DataError(
            f"{path.name}: expected a tensor of floats, got {array.dtype}; word or index tensors are not features"
        )
    return feat.array_feature(name, path, array)


def _content(name: str, path: Path, content: Any) -> Feature | Vectors:
    """What a pickle or JSON holds: an array, or vectors by id."""
    if isinstance(content, Array):
        return feat.array_feature(name, path, content.value)
    if isinstance(content, Sparse):
        raise DataError(_SPARSE.format(path.name))
    if isinstance(content, dict):
        return _bundle(name, path, {key: _plain(path, key, value) for key, value in content.items()}, "")
    raise DataError(f"{path.name}: expected an array or {{item: vector}}, got {type(content).__name__}")


def _plain(path: Path, key: Any, value: Any) -> Any:
    """A vector of a pickle or of JSON as an array or a flat list."""
    if isinstance(value, Array):
        return value.value
    if isinstance(value, (list, tuple)):
        try:
            flat_or_error(value)
        except TypeError as error:
            raise DataError(f"{path.name}, key {key!r}: {error}, as one vector") from None
    return value


def _bundle(name: str, path: Path, arrays: Mapping[Any, Any], key: str) -> Feature | Vectors:
    """Named arrays: one matrix, a matrix beside its ids, or one vector per id."""
    if key:
        if key not in arrays:
            raise DataError(f"{path.name}: no array {key!r}; it has {names.listed(list(arrays)) or 'none'}")
        return feat.array_feature(name, path, np.asarray(arrays[key]), f"rows by position, array {key!r}")
    if not arrays:
        raise DataError(f"{path.name}: holds no arrays")
    shapes = {k: np.shape(a) for k, a in arrays.items() if isinstance(a, (np.ndarray, list, tuple))}
    matrices = [k for k, shape in shapes.items() if len(shape) == 2]
    if len(matrices) > 1:
        raise DataError(
            f"{path.name}: holds several matrices ({names.listed(matrices)}); choose one with "
            f"--feature NAME={path.name}#{matrices[0]}"
        )
    if matrices:
        matrix = np.asarray(arrays[matrices[0]])
        ids = [k for k, shape in shapes.items() if shape == matrix.shape[:1] and names.plain(str(k)) in names.IDS]
        if not ids:
            return feat.array_feature(name, path, matrix, f"rows by position, array {matrices[0]!r}")
        feat.array_feature(name, path, matrix)  # the same checks
        reading = f"rows by id ({ids[0]!r}), array {matrices[0]!r}"
        return Vectors(name, path.name, _rows_of(path, _id_array(path, arrays[ids[0]]), matrix), reading)
    odd = next((k for k in arrays if len(shapes.get(k, ())) != 1 or not shapes[k][0]), None)
    if odd is not None:
        raise DataError(
            f"{path.name}: expected a matrix, or one vector per id, but {odd!r} is neither; --feature NAME=FILE "
            "chooses files"
        )
    rows = list(arrays.values())
    whole = np.asarray(rows[0]).dtype.kind in "biu"
    return Vectors(name, path.name, _rows_of(path, _id_array(path, list(arrays)), rows), whole=whole)


def _id_array(path: Path, ids: Any) -> pa.Array:
    """Ids as an Arrow array; integers beside strings become strings."""
    values = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    values = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    if any(isinstance(v, str) for v in values):
        values = [v if isinstance(v, str) else repr(v) for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"{path.name}: its ids are no ids ({files.first_line(error)})") from None


def _rows_of(path: Path, ids: pa.Array, rows: Any) -> Callable[[BadRows], Iterator]:
    def batches(_: BadRows) -> Iterator[tuple[Where, pa.Array, np.ndarray, np.ndarray]]:
        for start in range(0, len(ids), _BATCH):
            part = rows[start : start + _BATCH]
            here = _at(path, ids, start)
            if not isinstance(part, np.ndarray):
                widths = [len(row) for row in part]
                odd = next((i for i, width in enumerate(widths) if width != widths[0]), -1)
                if odd >= 0:
                    raise DataError(f"{here(odd)}: {widths[odd]} feature values, those before it have {widths[0]}")
                try:
                    part = np.array(part, dtype=np.float64)
                except (ValueError, TypeError) as error:
                    raise DataError(f"{here(0)}: features must be numbers ({files.first_line(error)})") from None
            with np.errstate(over="ignore"):
                part = part.astype(np.float32)
            bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
            if len(bad):
                raise DataError(f"{here(int(bad[0]))}: a feature is NaN or infinite; clean it, or leave the item out")
            yield here, ids[start : start + _BATCH], part, np.ones(len(part), dtype=bool)

    return batches


def _at(path: Path, ids: pa.Array, start: int) -> Where:
    return lambda at: f"{path.name}, key {ids[start + at].as_py()!r}"


def _table(name: str, path: Path, table: Table, columns: Columns) -> Feature | Vectors:
    """A table with a row per item: by its id column, or by position if it has none."""
    id_column, values, left = feature_columns(table, columns)
    note = f"; left out {', '.join(left)} (row labels of pandas)" if left else ""
    if id_column:
        reading = f"{table.reading}; rows by {id_column!r}, {len(values)} columns{note}"
        return Vectors(name, table.name, _rows_by_id(table, id_column, values), reading)
    found = [(numbers, held) for _, _, numbers, held in _rows_by_id(table, "", values)(BadRows())]
    if not found:
        raise DataError(f"{table.name}: no feature rows")
    matrix = np.zeros((sum(len(held) for _, held in found), found[0][0].shape[1]), dtype=np.float32)
    present = np.concatenate([held for _, held in found])
    matrix[present] = np.concatenate([numbers for numbers, _ in found])
    feature = feat.array_feature(name, path, matrix, f"{table.reading}; rows by position, {len(values)} columns{note}")
    feature.present = None if present.all() else present
    return feature


def feature_columns(table: Table, columns: Columns) -> tuple[str, list[str], list[str]]:
    """The id column of a table of features ("" if there is none), its feature columns, and those left out."""
    id_column = next((c for c in (columns.items_id, columns.item_column) if c in table.columns), "") or table.first(
        ITEMS_ID.names
    )
    unnamed = [c for c in table.columns[:1] if c.startswith(("unnamed 1", "Unnamed: 0"))]
    left = [c for c in (*table.index, *unnamed) if c != id_column]
    values = [c for c in table.columns if c not in {id_column, *left}]
    if not values:
        raise DataError(f"{table.name}: no feature column beside {id_column or 'row labels'!r}")
    return id_column, values, left


def looks_like_features(table: Table, columns: Columns) -> bool:
    """Whether a table's first rows hold item ids and vectors: two numbers and more, not all of them whole."""
    try:
        id_column, values, _ = feature_columns(table, columns)
        where, batch = next(table.batches(values, BadRows(drop=True)))
        numbers, _ = feat.values([column[:100] for column in batch], where)
    except (DataError, Reread, StopIteration):
        return False
    return bool(id_column) and numbers.shape[1] > 1 and bool((numbers % 1 != 0).any())


def _rows_by_id(table: Table, id_column: str, values: list[str]) -> Callable[[BadRows], Iterator]:
    """Batches of the rows of a table, for `Vectors`; without an id column their ids are empty."""

    def batches(bad: BadRows) -> Iterator[tuple[Where, pa.Array, np.ndarray, np.ndarray]]:
        size, stored = 0, sum(path.stat().st_size for path in table.files())
        for where, batch in table.batches([id_column, *values] if id_column else values, bad):
            numbers, held = feat.values(batch[bool(id_column) :], where)
            size += numbers.nbytes
            files.need_backing(table.path, 3 * size, "its features", stored)  # they are put together in memory
            yield where, batch[0] if id_column else pa.array([]), numbers, held

    return batches
