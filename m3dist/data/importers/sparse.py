"""The one check that every sparse matrix passes before anything computes with it.

scipy trusts the index arrays of a matrix and reads and writes memory where they point.
Shapes: n entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m3dist.data.dataset import DataError
from m3dist.data.importers.files import first_line
from m3dist.data.importers.names import listed
from m3dist.data.importers.npz import read_npz

FORMATS = ("csr", "csc", "coo")
Entries = tuple[np.ndarray, np.ndarray, tuple[int, int]]


def coordinates(kind: str, parts: Mapping[str, Any], shape: Any, source: str) -> Entries:
    """Rows and columns of the entries that are not zero, int64 [n] each, and the shape.

    parts: data, and indptr and indices (csr, csc) or row and col (coo), as arrays. Raises DataError unless all of
    them fit each other and the shape.
    """
    try:
        rows, columns = (int(n) for n in shape)
        data = parts["data"]
        if kind == "coo":
            row, col = parts["row"], parts["col"]
        else:
            starts, inner = parts["indptr"], parts["indices"]
            outer_size = rows if kind == "csr" else columns
            if starts.ndim != 1 or starts.dtype.kind not in "iu" or len(starts) != outer_size + 1:
                raise ValueError("indptr does not fit the shape")
            starts = starts.astype(np.int64)
            counts = np.diff(starts)
            if int(starts[0]) != 0 or (counts < 0).any() or int(starts[-1]) > min(len(inner), len(data)):
                raise ValueError("indptr does not fit the indices")
            inner, data = inner[: int(starts[-1])], data[: int(starts[-1])]
            outer = np.repeat(np.arange(len(counts)), counts)
            row, col = (outer, inner) if kind == "csr" else (inner, outer)
        if not (row.ndim == col.ndim == data.ndim == 1) or not (len(row) == len(col) == len(data)):
            raise ValueError("rows, columns and values do not fit each other")
        if row.dtype.kind not in "iu" or col.dtype.kind not in "iu" or data.dtype.kind not in "biuf":
            raise ValueError(f"indices of {row.dtype} and {col.dtype}, values of {data.dtype}")
        for name, index, size in (("row", row, rows), ("column", col, columns)):
            if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
                raise ValueError(f"a {name} index is outside of the shape {(rows, columns)}")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise DataError(f"{source}: a damaged sparse matrix ({first_line(error)}); save it again") from None
    kept = data != 0
    return row[kept].astype(np.int64), col[kept].astype(np.int64), (rows, columns)


def read_sparse_npz(path: Path) -> Entries:
    """A matrix as scipy.sparse.save_npz writes it. Raises DataError."""
    arrays = read_npz(path)
    kind = arrays.get("format", np.array("")).reshape(-1)[:1].tolist()
    name = kind[0].decode("latin1") if kind and isinstance(kind[0], bytes) else str(kind[0]) if kind else ""
    if name not in FORMATS or "shape" not in arrays:
        raise DataError(
            f"{path.name}: not a sparse matrix as scipy.sparse.save_npz writes it in one of {', '.join(FORMATS)} "
            f"(it holds {listed(list(arrays))})"
        )
    return coordinates(name, arrays, arrays["shape"].reshape(-1).tolist(), path.name)
