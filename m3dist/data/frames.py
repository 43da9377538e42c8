"""Data sets from tables and arrays in memory, by the rules and the code of `m3dist prepare tables`.

What is given goes through temporary files, so memory and checks are those of files; results are the same.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m3dist.data.dataset import DataError
from m3dist.data.importers import common, tables
from m3dist.data.importers.files import first_line
from m3dist.data.importers.options import Files, Options, Text


def from_arrow(
    interactions: Any,
    features: Mapping[str, Any],
    out: str | Path,
    options: Options,
    items: Any = None,
) -> dict[str, Any]:
    """Write a data set; returns the content of its dataset.json. See `Dataset.from_arrow`. Raises DataError."""
    if options.text != Text() or options.files != Files() or options.users or options.preview:
        raise DataError("options: text, files, users and preview are for files; give tables and arrays themselves")
    odd = [name for name in features if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name))]
    if odd:
        raise DataError(f"features: modality name {odd[0]!r} may hold letters, digits, - and _ only")
    with tempfile.TemporaryDirectory(prefix="m3dist-") as temporary, _as_options():
        options.written.check()
        folder = Path(temporary)
        (folder / "features").mkdir()
        paths = {name: _stored(folder / "features" / name, values) for name, values in features.items()}
        listed = None if items is None else _stored(folder / "items", _listed(items))
        options = replace(options, files=Files(listed, paths))
        source = tables.read(_stored(folder / "interactions", table(interactions, "interactions")), options)
        return common.write(source, out, options.written.overlap, options.written.zero_rows)


def each(features: Any, make: Callable[[Any, str], pa.Table]) -> dict[str, Any]:
    """Features by modality: arrays as they are, and `make(values, name)` of others."""
    if not isinstance(features, Mapping | None):
        raise DataError(f"features: expected {{modality: table or array}}, got {type(features).__name__}")
    return {name: x if is_matrix(x) else make(x, str(name)) for name, x in (features or {}).items()}


def from_frame(frame: Any, what: str) -> pa.Table:
    """A pandas DataFrame as Arrow: as `to_parquet` would write it, and columns of integers beside text as text."""
    if not is_frame(frame):
        raise DataError(f"{what}: expected a pandas DataFrame, got {type(frame).__name__}")
    try:
        try:
            return pa.Table.from_pandas(frame)
        except pa.ArrowException:
            frame = frame.copy()
            for at, kind in enumerate(frame.dtypes):
                if kind.kind == "O" and _are_ids(column := list(frame.iloc[:, at])):
                    frame.isetitem(at, _as_text(column))
            return pa.Table.from_pandas(frame)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{what}: cannot be read as a table ({first_line(error)})") from None


def from_columns(columns: Any, what: str) -> pa.Table:
    """{name: array or sequence} as Arrow."""
    if not isinstance(columns, Mapping):
        raise DataError(f"{what}: expected {{column: array}}, got {type(columns).__name__}")
    return table({str(name): _column(values, f"{what}, {name}") for name, values in columns.items()}, what)


def table(given: Any, what: str) -> pa.Table:
    """An Arrow table, or what can be exported as one."""
    if isinstance(given, pa.Table):
        return given
    try:
        return pa.table(given)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{what}: cannot be read as a table ({first_line(error)})") from None


def is_frame(given: Any) -> bool:
    """Whether it is a DataFrame of pandas."""
    return hasattr(given, "iloc") and hasattr(given, "columns")


def is_matrix(values: Any) -> bool:
    """Whether features are rows of numbers by position, not a table: an array, a tensor or a list of lists."""
    kind = type(values)
    return hasattr(kind, "__array_interface__") or hasattr(kind, "numpy") or isinstance(values, list | tuple)


def _listed(items: Any) -> pa.Table:
    """The items table: as given, or of ids."""
    if isinstance(items, pa.Table):
        return items
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise DataError(f"items: expected the ids in the order of features' rows, got {type(items).__name__}")
    return table({"item_id": _column(items, "items")}, "items")


def _column(values: Any, what: str) -> pa.Array:
    """One column. Integers beside text, or beyond 64 bits, become text, as they are in files."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        if isinstance(values, np.ndarray) and values.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
        if isinstance(values, np.ndarray) and values.dtype != object:
            return pa.array(values)
        values = list(values)
        try:
            return pa.array(values, from_pandas=True)
        except (pa.ArrowException, OverflowError):
            if not _are_ids(values):
                raise
            return pa.array(_as_text(values), pa.string())
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{what}: expected one number, text or time a row ({first_line(error)})") from None


def _are_ids(values: list) -> bool:
    return all(x is None or isinstance(x, int | np.integer | str) for x in values)


def _as_text(ids: list) -> list[str | None]:
    return [None if x is None else str(x) for x in ids]


def _stored(path: Path, values: Any) -> Path:
    """An array as .npy and a table as Arrow, in a file of its name alone, which messages give."""
    if not isinstance(values, pa.Table) and is_matrix(values):
        try:
            array = np.asarray(values)
        except (ValueError, TypeError) as error:
            raise DataError(f"{path.name}: expected [items, width] numbers ({first_line(error)})") from None
        if array.dtype.kind not in "fiub":
            raise DataError(f"{path.name}: features must be numbers, got {array.dtype}")
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        return path
    values = table(values, path.name)
    with pa.ipc.new_file(str(path), values.schema) as out:
        out.write_table(values)
    return path


@contextmanager
def _as_options() -> Iterator[None]:
    """Messages name options as Python does: `test_from` in place of `--test-from`."""
    try:
        yield
    except DataError as error:
        text = re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: found[1].replace("-", "_"), str(error))
        raise DataError(text) from None
