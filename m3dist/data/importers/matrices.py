"""Sparse user-by-item matrices per split, as LATTICE, MMSSL, LLMRec and their kin publish them.

train_mat val_mat test_mat (or trnMat valMat tstMat, train val test)   .npz, .pkl, no suffix (a pickle), or
                                                                       .json {user: [items]}
image_feat.npy text_feat.npy *_feat.npy                                row i = item i
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers.common import Source
from m3dist.data.importers.mmrec import find_features
from m3dist.data.importers.pickles import Sparse, as_array, coordinates, load_pickle

STEMS = {
    "train": ("train_mat", "trnMat", "train_matrix", "train"),
    "val": ("val_mat", "valMat", "valid_mat", "val_matrix", "val", "valid", "validation"),
    "test": ("test_mat", "tstMat", "test_matrix", "test"),
}
SUFFIXES = (".npz", ".pkl", ".pickle", "", ".json")
Entries = tuple[np.ndarray, np.ndarray, tuple[int, int] | None]


def read(src: Path, features: dict[str, Path] | None = None, present: dict[str, Path] | None = None) -> Source:
    """Read the folder. Raises DataError."""
    if not src.is_dir():
        raise DataError(f"{src}: expected a folder of sparse matrices")
    files = {split: _find(src, split) for split in SPLITS}
    entries = {split: _entries(path) for split, path in files.items()}
    shapes = {split: shape for split, (_, _, shape) in entries.items() if shape}
    for split, shape in shapes.items():
        first = next(iter(shapes))
        if shape != shapes[first]:
            raise DataError(
                f"{files[split].name}: shape {shape}, but {files[first].name} has {shapes[first]}; all splits must be "
                "[users, items]"
            )
    modalities = [feat.matrix(name, path) for name, path in (features or find_features(src)).items()]
    notes = feat.assign_flags(modalities, present or {}, src)
    n_users = 1 + max(int(user.max(initial=-1)) for user, _, _ in entries.values())
    n_items = 1 + max(int(item.max(initial=-1)) for _, item, _ in entries.values())
    if shapes:
        n_users, n_items = next(iter(shapes.values()))
    elif modalities:
        n_items = modalities[0].rows or n_items
    splits = {split: (user, item) for split, (user, item, _) in entries.items()}
    names = {split: path.name for split, path in files.items()}
    return Source("scipy", n_users, n_items, splits, names, modalities, notes=notes)


def _find(src: Path, split: str) -> Path:
    """The file of a split; a matrix goes before a .json of the same data."""
    for suffix in SUFFIXES:
        for stem in STEMS[split]:
            if (src / (stem + suffix)).is_file():
                return src / (stem + suffix)
    raise DataError(
        f"{src.name}: no {split} matrix; expected {' or '.join(STEMS[split])} with .npz, .pkl, .json or no suffix"
    )


def _entries(path: Path) -> Entries:
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            raise DataError(f"{path.name}: not JSON ({str(error).splitlines()[0]})") from None
    else:
        content = load_pickle(path)
    if isinstance(content, Sparse):
        return coordinates(content, path.name)
    if isinstance(content, dict):
        return (*_from_dict(path, content), None)
    raise DataError(f"{path.name}: expected a sparse matrix or {{user: [items]}}, got {type(content).__name__}")


def _npz(path: Path) -> Entries:
    import scipy.sparse

    try:
        matrix = scipy.sparse.load_npz(path).tocoo()  # reads plain arrays only, never a pickle
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name}: not a sparse matrix as scipy.sparse.save_npz writes it ({str(error).splitlines()[0]})"
        ) from None
    kept = matrix.data != 0
    return matrix.row[kept], matrix.col[kept], matrix.shape


def _from_dict(path: Path, content: dict) -> tuple[np.ndarray, np.ndarray]:
    users, items = [], [np.empty(0, dtype=np.int64)]
    for user, ids in content.items():
        try:
            row = as_array(ids)
            users.append(np.full(len(row), int(user), dtype=np.int64))
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{path.name}, key {user!r}: expected an integer user id and a list of items") from None
        if len(row):
            if row.ndim != 1 or row.dtype.kind not in "iu":
                raise DataError(f"{path.name}, key {user!r}: expected a list of integer item ids")
            items.append(row.astype(np.int64))
    if not users:
        raise DataError(f"{path.name}: no interactions")
    return np.concatenate(users), np.concatenate(items)
