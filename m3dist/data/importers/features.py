"""Feature files: .npy and .pt matrices whose row i is item i, and Parquet tables keyed by item id.

Shapes: I items, d feature width, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3dist.data.dataset import DataError
from m3dist.data.importers.columns import Table, Where
from m3dist.data.importers.ids import Growing

MATRIX_SUFFIXES = (".npy", ".pt")
_BLOCK_BYTES = 1 << 25


@dataclass
class Feature:
    """One modality: `blocks()` gives the [I, d] matrix or row blocks of it; rows is I where a header tells it."""

    name: str
    file: str
    blocks: Callable[[], np.ndarray | Iterable[np.ndarray]]
    rows: int | None = None
    present: np.ndarray | None = None


def matrix(name: str, path: Path) -> Feature:
    """A .npy or .pt feature matrix. Nothing in the file can run code."""
    if not path.is_file():
        raise DataError(f"{path.name}: no such feature file")
    if path.suffix == ".npy":
        shape = open_npy(path).shape
        _check_shape(path, shape)
        return Feature(name, path.name, lambda: _npy_blocks(path), rows=shape[0])
    if path.suffix == ".pt":
        tensor = load_pt(path)
        _check_shape(path, tensor.shape)
        if tensor.dtype.kind != "f":
            raise DataError(
                f"{path.name}: expected a tensor of floats, got {tensor.dtype}; word or index tensors are not features"
            )
        return Feature(name, path.name, lambda: tensor, rows=tensor.shape[0])
    raise DataError(f"{path.name}: features must be {', '.join(MATRIX_SUFFIXES)} or .parquet")


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


def assign_flags(features: list[Feature], given: dict[str, Path], folder: Path | None) -> list[str]:
    """Set `present` of features: `given` by modality name, otherwise has_<x>.npy in `folder` that plainly belongs.

    Returns notes on has_ files that belong to no modality.
    """
    by_name = {feature.name: feature for feature in features}
    for name, path in given.items():
        if name not in by_name:
            raise DataError(f"{path.name}: flags of modality {name!r}, which is not among {', '.join(by_name) or '-'}")
        _set_flags(by_name[name], path)
    notes = []
    for path in sorted(folder.glob("has_*.npy")) if folder else []:
        what = path.stem.removeprefix("has_")
        owners = [f for f in features if what == f.name or what == Path(f.file).stem.split("_")[0]]
        if len(owners) == 1 and owners[0].name not in given:
            _set_flags(owners[0], path)
        elif len(owners) != 1:
            notes.append(f"{path.name} belongs to no one modality and was left out; say --present NAME={path.name}")
    return notes


def _set_flags(feature: Feature, path: Path) -> None:
    present = flags(path)
    if feature.rows is not None and len(present) != feature.rows:
        raise DataError(f"{path.name}: {len(present)} flags for the {feature.rows} rows of {feature.file}")
    feature.present = present if feature.present is None else feature.present & present


@dataclass
class Keyed:
    """Features of a Parquet table while they are read: values by row, and the code of each row's item."""

    name: str
    file: str
    codes: Growing = field(default_factory=Growing)
    chunks: list[np.ndarray] = field(default_factory=list)

    def place(self, dense: np.ndarray | None, n_items: int) -> Feature:
        """Rows by dense id; items without a row lack the modality."""
        codes = self.codes.take()
        rows = dense[codes] if dense is not None else codes
        present = np.zeros(n_items, dtype=bool)
        present[rows] = True
        if not self.chunks:
            raise DataError(f"{self.file}: no feature rows")
        out = np.zeros((n_items, self.chunks[0].shape[1]), dtype=np.float32)
        at = 0
        for chunk in self.chunks:
            out[rows[at : at + len(chunk)]] = chunk
            at += len(chunk)
        self.chunks = []
        return Feature(self.name, self.file, lambda: out, rows=n_items, present=None if present.all() else present)


def feature_columns(table: Table, item_column: str) -> list[str]:
    """The columns of a keyed table that hold features: all but the id."""
    names = [name for name in table.columns if name != item_column]
    if not names:
        raise DataError(f"{table.path.name}: no feature column beside {item_column!r}")
    return names


def values(columns: list[pa.Array], where: Where) -> tuple[np.ndarray, np.ndarray]:
    """float32 [b', d] features of a batch, and which of its rows have them, bool [b] (a null row lacks the modality).

    columns: one column of lists of one length, or one number column per dimension.
    """
    first = columns[0]
    lists = (
        pa.types.is_list(first.type) or pa.types.is_large_list(first.type) or pa.types.is_fixed_size_list(first.type)
    )
    if lists and len(columns) > 1:
        raise DataError(f"{where(0)}: expected one list column or number columns, got a list column among others")
    held = np.ones(len(first), dtype=bool)
    for column in columns:
        held &= pc.is_valid(column).to_numpy(zero_copy_only=False)
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


def _floats(array: pa.Array, where: Where) -> np.ndarray:
    try:
        return pc.cast(array, pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{where(0)}: features must be numbers, got {array.type}") from None


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or not all(shape):
        raise DataError(
            f"{path.name}: expected [items, width] features, got shape {tuple(shape)}; --feature chooses files"
        )


def open_npy(path: Path) -> np.ndarray:
    """A .npy array of numbers, memory-mapped. Raises DataError."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path.name}: not a .npy array of numbers ({str(error).splitlines()[0]})") from None


def _npy_blocks(path: Path) -> Iterator[np.ndarray]:
    array = open_npy(path)
    rows = max(1, _BLOCK_BYTES // (array.shape[1] * array.itemsize))
    for start in range(0, len(array), rows):
        if start and array.flags.c_contiguous:
            array = open_npy(path)  # a fresh map: pages that were read stop counting as this process's memory
        yield array[start : start + rows]


def load_pt(path: Path) -> np.ndarray:
    """The one tensor of a .pt file; bfloat16 becomes float32. Raises DataError."""
    import torch  # seconds to import, so only for .pt

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises all sorts; a hostile one UnpicklingError
        raise DataError(
            f"{path.name}: not a plain tensor file ({type(error).__name__}); save the tensor alone with torch.save"
        ) from None
    if not isinstance(tensor, torch.Tensor) or tensor.is_sparse:
        raise DataError(f"{path.name}: expected one dense tensor [items, width], got {type(tensor).__name__}")
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
