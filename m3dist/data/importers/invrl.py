"""InvRL and MMGCN folders.

    train.npy [n, 2] pairs, or user_item_train_dict.npy, or user_item_dict.npy   {user: items}
    val_full.npy test_full.npy        object arrays, rows [user, item, item, ...]
    feat_v feat_a feat_t .npy or .pt  features [items, d], or word tensors [2, n] (item, word)

Item ids are shifted by the number of users.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from m3dist.data.dataset import DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers.common import Source, need_dense
from m3dist.data.importers.dense import open_features, placed
from m3dist.data.importers.featurefiles import ARRAY_SUFFIXES
from m3dist.data.importers.files import first_line
from m3dist.data.importers.options import FILES, Options
from m3dist.data.importers.pickles import as_array, load_npy
from m3dist.seeding import numpy_rng

NAMES = {"v": "visual", "a": "acoustic", "t": "textual"}
WORD_WIDTH = 128
TAKES = FILES | {"users"}
Pairs = tuple[np.ndarray, np.ndarray]


def recognise(src: Path) -> str | None:
    """Why `src` is an InvRL or MMGCN folder, or None."""
    if not src.is_dir() or not (src / "val_full.npy").is_file() or not (src / "test_full.npy").is_file():
        return None
    return f"{_train_file(src).name}, val_full.npy and test_full.npy"


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the folder. options.users: how many there are, where the highest ids occur nowhere. Raises DataError."""
    options = options or Options.of(**given)
    users = options.users
    if not src.is_dir():
        raise DataError(f"{src}: expected an InvRL or MMGCN folder")
    train_file = _train_file(src)
    notes: list[str] = []
    splits = {"val": _held_out(src, "val"), "test": _held_out(src, "test")}
    splits["train"] = _train(train_file)
    files = {"train": train_file.name, "val": "val_full.npy", "test": "test_full.npy"}
    n_users = users or 1 + max(int(user.max(initial=-1)) for user, _ in splits.values())
    for split, (user, item) in splits.items():
        bad = np.flatnonzero((user < 0) | (user >= n_users) | (item < n_users))
        if len(bad):
            raise DataError(
                f"{files[split]}: pair {int(bad[0])} is user {int(user[bad[0]])}, item {int(item[bad[0]])}; expected "
                f"users 0..{n_users - 1} and item ids from {n_users} on, shifted by the number of users"
            )
        need_dense(src / files[split], int(item.max(initial=0)), "user and item")
        splits[split] = (user, item - n_users)
    if train_file.name == "user_item_dict.npy":
        notes += _without_held_out(splits)
    n_items = 1 + max(int(item.max(initial=0)) for _, item in splits.values())
    found = options.files.features or _find_features(src)
    words = {name: tensor for name, path in found.items() if (tensor := _words(path)) is not None}
    opened, left = open_features({name: path for name, path in found.items() if name not in words}, options, set())
    for feature in opened.values():
        rows = feature.rows if isinstance(feature, feat.Feature) else None
        if rows is not None and rows < n_items:
            raise DataError(
                f"{feature.file}: {rows} feature rows, but item ids reach {n_items - 1 + n_users}, which is item "
                f"{n_items - 1} after the shift by {n_users} users; if there are more users than ids show, say --users"
            )
    n_items = max([n_items, *(f.rows or 0 for f in opened.values() if isinstance(f, feat.Feature))])
    modalities = {name: placed(feature, n_items) for name, feature in opened.items()}
    for name, tensor in words.items():
        modalities[name] = _word_features(name, found[name], tensor, n_items, n_users)
        notes.append(f"{found[name].name} holds words; each item has the mean of its words' random vectors")
    more, seen = feat.assign_flags(list(modalities.values()), options.files.present, src)
    return Source(
        "invrl",
        n_users,
        n_items,
        {s: (user.astype(np.int32), item.astype(np.int32)) for s, (user, item) in splits.items()},
        files,
        [modalities[name] for name in found if name in modalities],
        options={"users": users} if users else {},
        readings={train_file.name: f"pairs of user and item, items shifted by {n_users} users"},
        notes=notes + left + more,
        folder=src,
        used={src / name for name in files.values()} | set(found.values()) | seen,
    )


def _train_file(src: Path) -> Path:
    for name in ("train.npy", "user_item_train_dict.npy", "user_item_dict.npy"):
        if (src / name).is_file():
            return src / name
    raise DataError(
        f"{src.name}: no training interactions: expected train.npy, user_item_train_dict.npy or user_item_dict.npy "
        f"beside {', '.join(sorted(path.name for path in src.glob('*.npy'))) or 'no .npy file'}"
    )


def _train(path: Path) -> Pairs:
    array = load_npy(path)
    content = array.item() if array.dtype == object and array.shape == () else array
    if isinstance(content, dict):
        return _flatten(path, ((user, _ids(path, items)) for user, items in content.items()), "key")
    if array.ndim == 1 and array.dtype == object:
        rows = [_ids(path, row) for row in array]
        if any(row.shape != (2,) for row in rows):
            raise DataError(f"{path.name}: expected [user, item] pairs or {{user: items}}")
        array = np.array(rows)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuO":
        raise DataError(f"{path.name}: expected [n, 2] pairs or {{user: items}}, got {array.dtype} {array.shape}")
    if array.dtype == object:
        return _flatten(path, ((row[0], _ids(path, list(row[1:]))) for row in array), "row")
    return array[:, 0].astype(np.int64), array[:, 1].astype(np.int64)


def _held_out(src: Path, split: str) -> Pairs:
    path = src / f"{split}_full.npy"
    if not path.is_file():
        also = src / f"{split}.npy"
        hint = f"; {also.name} mixes sampled negatives with the positives and is not used" if also.is_file() else ""
        raise DataError(f"{src.name}: no {path.name}{hint}")
    array = load_npy(path)
    if array.ndim not in (1, 2) or array.dtype.kind not in "Oiu":
        raise DataError(f"{path.name}: expected rows [user, item, item, ...], got {array.dtype} {array.shape}")
    rows = []
    for i, row in enumerate(array):
        ids = _ids(path, list(row) if array.ndim == 2 else row)
        if ids.ndim != 1 or not len(ids):
            raise DataError(f"{path.name}, row {i}: expected [user, item, item, ...]")
        rows.append((ids[0], ids[1:] if len(ids) > 1 else np.empty(0, dtype=np.int64)))
    return _flatten(path, rows, "row")


def _ids(path: Path, value: Any) -> np.ndarray:
    """Ids of a row as an array. Raises DataError."""
    try:
        return as_array(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path.name}: expected integer ids in rows ({first_line(error)})") from None


def _flatten(path: Path, rows: Any, what: str) -> Pairs:
    """(user, items) rows as pairs, int64 [n] each."""
    users, counts, items = [], [], [np.empty(0, dtype=np.int64)]
    for i, (user, ids) in enumerate(rows):
        integer = isinstance(user, (int, np.integer)) and not isinstance(user, bool)
        if not integer or ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            at = user if what == "key" else i
            raise DataError(f"{path.name}, {what} {at!r}: expected integer user and item ids")
        users.append(int(user))
        counts.append(len(ids))
        if len(ids):
            items.append(ids.astype(np.int64))
    if not sum(counts):
        raise DataError(f"{path.name}: no interactions")
    return np.repeat(np.array(users, dtype=np.int64), counts), np.concatenate(items)


def _without_held_out(splits: dict[str, Pairs]) -> list[str]:
    """user_item_dict.npy may hold every split: leave what is held out out of train."""
    user, item = splits["train"]
    held = np.concatenate([(splits[s][0] << 32) | splits[s][1] for s in ("val", "test")])
    kept = ~np.isin((user << 32) | item, held)
    splits["train"] = user[kept], item[kept]
    dropped = len(user) - int(kept.sum())
    return [f"user_item_dict.npy held {dropped} pairs of val and test, which were left out of train"] if dropped else []


def _find_features(src: Path) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for path in sorted(p for p in src.glob("feat_*") if p.suffix in ARRAY_SUFFIXES):
        suffix = path.stem.removeprefix("feat_")
        name = NAMES.get(suffix, suffix)
        if name in out:
            raise DataError(f"{src.name}: {out[name].name} and {path.name} are both {name!r}; choose with --feature")
        out[name] = path
    return out


def _words(path: Path) -> np.ndarray | None:
    """int64 [2, n] of a word tensor (item, word); None for a file of features."""
    if not path.is_file() or path.suffix not in (".npy", ".pt"):
        return None
    if path.suffix == ".npy":
        try:
            words: Any = feat.open_npy(path)
        except DataError:
            return None  # reading it as features says what it is
    else:
        from m3dist.data.importers.tensors import load_pt

        words = load_pt(path)
    if not isinstance(words, np.ndarray) or words.dtype.kind != "i" or words.ndim != 2 or words.shape[0] != 2:
        return None
    return words.astype(np.int64)


def _word_features(name: str, path: Path, words: np.ndarray, n_items: int, n_users: int) -> feat.Feature:
    """The mean of fixed random word vectors of each item: cosines follow those of the bags of words.

    The published models learn the word vectors; a data set holds features, so these are drawn once and for all.
    """
    item, word = words
    if int(item.max(initial=0)) >= n_items:
        item = item - n_users
    if not len(item) or int(item.min()) < 0 or int(item.max()) >= n_items or int(word.min()) < 0:
        raise DataError(f"{path.name}: a word tensor [item, word] whose items are not 0..{n_items - 1}")
    need_dense(path, 32 * int(word.max()), "word")  # a vector of floats each
    vectors = numpy_rng(0, "words").standard_normal((int(word.max()) + 1, WORD_WIDTH), dtype=np.float32)
    out = np.zeros((n_items, WORD_WIDTH), dtype=np.float32)
    np.add.at(out, item, vectors[word])
    count = np.bincount(item, minlength=n_items)
    out /= np.maximum(count, 1)[:, None]
    present = count > 0
    return feat.Feature(name, path.name, lambda: out, rows=n_items, present=None if present.all() else present)
