"""How the hostile corpus makes its files: a good data set beside one bad file."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

RAN = "ran"  # the folder that a payload makes, in the current one


class Payload:
    """Makes a folder when it is unpickled carelessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (RAN,)


def interactions(folder: Path) -> None:
    rows = [f"{u},{i},{('train', 'val', 'test')[(u + i) % 3]}\n" for u in range(4) for i in range(6)]
    (folder / "interactions.csv").write_text("user_id,item_id,split\n" + "".join(rows))


def matrices(folder: Path) -> None:
    for split, code in (("train", 0), ("val", 1), ("test", 2)):
        dense = np.fromfunction(lambda u, i, code=code: ((u + i) % 3 == code).astype(float), (4, 6))
        scipy.sparse.save_npz(folder / f"{split}_mat.npz", scipy.sparse.csr_matrix(dense))


def table(content: bytes, name: str = "interactions.csv") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def feature(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A good table of interactions with a bad feature file."""

    def build(folder: Path) -> None:
        interactions(folder)
        made = make(folder / name)
        if isinstance(made, bytes):
            (folder / name).write_bytes(made)

    return build


def matrix(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Good matrices of val and test with a bad one of train."""

    def build(folder: Path) -> None:
        matrices(folder)
        (folder / "train_mat.npz").unlink()
        made = make(folder / name)
        if isinstance(made, bytes):
            (folder / name).write_bytes(made)

    return build


def invrl(name: str, content: bytes) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        np.save(folder / "train.npy", np.array([[0, 2], [1, 3]]))
        np.save(folder / "val_full.npy", np.array([[0, 3]]))
        np.save(folder / "test_full.npy", np.array([[1, 2]]))
        (folder / name).write_bytes(content)

    return build


def npy(shape: object, dtype: str = "<f4", values: bytes = b"") -> bytes:
    fields = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(fields).to_bytes(2, "little") + fields + values


def saved(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def tensor(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def flipped(data: bytes, seed: int, count: int = 8) -> bytes:
    """Some bytes changed."""
    rng, out = np.random.default_rng(seed), bytearray(data)
    for at in rng.integers(0, len(out), count):
        out[at] ^= int(rng.integers(1, 256))
    return bytes(out)
