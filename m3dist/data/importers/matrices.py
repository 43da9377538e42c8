"""Sparse user-by-item matrices per split, as LATTICE, MMSSL, LLMRec and their kin publish them.

train_mat val_mat test_mat (or trnMat valMat tstMat, train val test)   .npz, .pkl, no suffix (a pickle), or
                                                                       .json {user: [items]}
image_feat.npy text_feat.npy *_feat.npy                                row i = item i
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers import jsons
from m3dist.data.importers.common import Source, need_dense
from m3dist.data.importers.dense import open_features, placed
from m3dist.data.importers.files import need_backing
from m3dist.data.importers.mmrec import find_features
from m3dist.data.importers.options import FILES, Options
from m3dist.data.importers.pickles import Sparse, as_array, coordinates, load_pickle
from m3dist.data.importers.sparse import read_sparse_npz

TAKES = FILES
STEMS = {
    "train": ("train_mat", "trnMat", "train_matrix", "train"),
    "val": ("val_mat", "valMat", "valid_mat", "val_matrix", "val", "valid", "validation"),
    "test": ("test_mat", "tstMat", "test_matrix", "test"),
}
SUFFIXES = (".npz", ".pkl", ".pickle", "", ".json")
_CORE = re.compile(r"\d+-core")  # where LATTICE keeps its splits
Entries = tuple[np.ndarray, np.ndarray, tuple[int, int] | None]


def recognise(src: Path) -> str | None:
    """Why `src` is a folder of sparse matrices, or None."""
    if not src.is_dir():
        return None
    return ", ".join(_find(_split_folder(src), split).name for split in SPLITS)


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the folder. Raises DataError."""
    options = options or Options.of(**given)
    if not src.is_dir():
        raise DataError(f"{src}: expected a folder of sparse matrices")
    folder = _split_folder(src)
    if _CORE.fullmatch(src.name) and not list(src.glob("*_feat.npy")):
        src = src.parent  # a core's own folder: the features lie above it
    paths = {split: _find(folder, split) for split in SPLITS}
    entries = {split: _entries(path) for split, path in paths.items()}
    shapes = {split: shape for split, (_, _, shape) in entries.items() if shape}
    for split, shape in shapes.items():
        first = next(iter(shapes))
        if shape != shapes[first]:
            raise DataError(
                f"{paths[split].name}: shape {shape}, but {paths[first].name} has {shapes[first]}; all splits must be "
                "[users, items]"
            )
        need_dense(paths[split], sum(shape), "user and item")
    features = options.files.features or find_features(src, _named_like_splits(src))
    by_chance = {name for name, path in features.items() if not path.stem.endswith("_feat")}
    opened, left = open_features(features, options, by_chance)
    rows = [f.rows or 0 for f in opened.values() if isinstance(f, feat.Feature)]
    n_users = 1 + max(int(user.max(initial=-1)) for user, _, _ in entries.values())
    n_items = 1 + max(int(item.max(initial=-1)) for _, item, _ in entries.values())
    if shapes:
        n_users, n_items = next(iter(shapes.values()))
    elif rows:
        n_items = rows[0]
    modalities = [placed(feature, n_items) for feature in opened.values()]
    notes, seen = feat.assign_flags(modalities, options.files.present, src)
    modalities, short = feat.pad(modalities, n_items)
    return Source(
        "scipy",
        n_users,
        n_items,
        {split: (user, item) for split, (user, item, _) in entries.items()},
        {split: path.name for split, path in paths.items()},
        modalities,
        readings={path.name: "user-by-item matrix" if shapes.get(s) else "{user: items}" for s, path in paths.items()},
        notes=notes + left + short,
        folder=src,
        used={*paths.values(), *features.values(), *seen},
    )


def _split_folder(src: Path) -> Path:
    """Where the splits lie: the folder itself, or the one N-core folder in it."""
    cores = sorted(path for path in src.iterdir() if path.is_dir() and _CORE.fullmatch(path.name))
    if not cores or any((src / (stem + suffix)).is_file() for suffix in SUFFIXES for stem in STEMS["train"]):
        return src
    if len(cores) > 1:
        raise DataError(
            f"{src.name}: holds {' and '.join(path.name for path in cores)}; give one of these folders, the features "
            "above it are found"
        )
    return cores[0]


def _named_like_splits(src: Path) -> set[Path]:
    names = {stem for stems in STEMS.values() for stem in stems}
    return {path for path in src.iterdir() if path.stem in names}


def _find(src: Path, split: str) -> Path:
    """The file of a split; a matrix goes before a .json of the same data."""
    for suffix in SUFFIXES:
        for stem in STEMS[split]:
            if (src / (stem + suffix)).is_file():
                return src / (stem + suffix)
    raise DataError(
        f"{src.name}: no {split} matrix; expected {' or '.join(STEMS[split])} with .npz, .pkl, .json or no suffix, "
        "here or in a folder such as 5-core"
    )


def _entries(path: Path) -> Entries:
    if path.suffix == ".npz":
        return read_sparse_npz(path)
    content = jsons.load(path) if path.suffix == ".json" else load_pickle(path)
    if isinstance(content, Sparse):
        return coordinates(content, path.name)
    if isinstance(content, dict):
        user, item = _from_dict(path, content)
        need_dense(path, int(max(user.max(initial=0), item.max(initial=0))), "user and item")
        return user, item, None
    raise DataError(f"{path.name}: expected a sparse matrix or {{user: [items]}}, got {type(content).__name__}")


def _from_dict(path: Path, content: dict) -> tuple[np.ndarray, np.ndarray]:
    users, items, count = [], [np.empty(0, dtype=np.int64)], 0
    for user, ids in content.items():
        count += len(ids) if isinstance(ids, (list, tuple, set)) else 0
        need_backing(path, 32 * count, "its interactions")  # a pickle may hold one list many times
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
