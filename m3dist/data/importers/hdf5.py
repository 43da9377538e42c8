"""HDF5 files: the arrays of numbers and text in them, from the file itself and from no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from m3dist.data.dataset import DataError
from m3dist.data.importers import files


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """All data sets by their name. Raises DataError."""
    try:
        import h5py
    except ImportError:
        raise DataError(f'{path.name}: HDF5 needs h5py: pip install "m3dist[hdf5]"') from None
    out: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as file:
            found: list[tuple[str, Any]] = []
            # visits hard links only: a soft or external link could lead to another file
            file.visititems(lambda name, node: found.append((name, node)) if isinstance(node, h5py.Dataset) else None)
            for name, data in found:
                if data.external or data.is_virtual:
                    raise DataError(f"{path.name}: {name!r} lies in another file; store its values in this one")
            files.need_backing(path, sum(data.size * data.dtype.itemsize for _, data in found), "its arrays")
            for name, data in found:
                text = h5py.check_string_dtype(data.dtype)
                if not text and data.dtype.kind not in "biufS":
                    raise DataError(f"{path.name}: {name!r} holds {data.dtype}, expected numbers or text")
                out[name] = np.array(data.asstr()[:].tolist() if text else data[:])
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name}: not an HDF5 file of arrays ({files.first_line(error)})") from None
    return out
