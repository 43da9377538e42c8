"""Files that are damaged, or made to do harm: they ask for more memory than they are worth, point outside of
themselves, or run code where they are read carelessly. Made by the tests, never kept.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
import torch
from hostile_footers import expanding, footers
from hostile_makers import Payload, feature, flipped, invrl, matrix, npy, saved, table, tensor, zipped
from hostile_repeats import repeats

Case = tuple[str, str, Callable[[Path], None]]  # its name, the importer that reads it, how its folder is made

# a list of two lists of two lists ..., which are the same ones: sixty opcodes that stand for 2**60 numbers
SHARED = b"]\x94K\x01a" + b"".join(b"]\x94(h%ch%ce" % (n, n) for n in range(60))
PICKLES = {
    "system": b"cos\nsystem\n(S'mkdir ran'\ntR.",
    "eval": b"cbuiltins\neval\n(S'__import__(\"os\").makedirs(\"ran\")'\ntR.",
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
    "fromfile": b"cnumpy.core.multiarray\nfromfile\n(S'/etc/passwd'\ntR.",
    "load": b"cnumpy\nload\n.",
    "build": b"cnumpy\ndtype\n(N(dS'__setstate__'\nI1\nstb.",
    "stack": b"\x80\x04" + b"(" * 1000 + b".",
    "nested": b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b".",
    "memo": b"\x80\x04N" + b"r\xff\xff\xff\x7f" + b".",
    "half a memo": b"\x80\x04N" + b"r\x00\x00\x00\x10" + b".",
    "memo in text": b"Np400000000\n.",
    "bytes": b"\x80\x05\x8e" + (1 << 60).to_bytes(8, "little") + b"x.",
    "bytearray": b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b"x.",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "sets": b"\x80\x04(" + b"\x8f" * 2_000_000 + b"l.",
    "shared": b"\x80\x04" + SHARED + b".",
    "shared by key": b"\x80\x04}\x8c\x01a" + SHARED + b"s.",
    "array": pickle.dumps(np.arange(3)).replace(b"K\x03\x85", b"J\x00\x00\x00\x40\x85"),
    "nothing": b"",
    "text": b"hello",
}  # fmt: skip
INDEX = {
    "far": lambda a: np.where(np.arange(len(a)) == 1, 50_000_000, a),
    "negative": lambda a: np.where(np.arange(len(a)) == 1, -50_000_000, a),
    "backwards": lambda a: a[::-1].copy(),
    "short": lambda a: a[:-1],
    "long": lambda a: np.append(a, a[-1:]),
    "fractions": lambda a: a + 0.5,
    "square": lambda a: a.reshape(-1, 1),
    "text": lambda a: a.astype(str),
    "none": lambda a: a[:0],
    "huge": lambda a: a.astype(np.uint64) + np.uint64(2**63),
}


def spoiled_matrices() -> Iterator[Case]:
    """Sparse matrices one of whose arrays does not fit the others."""
    dense = np.fromfunction(lambda u, i: ((u + i) % 3 == 0).astype(float), (4, 6))
    for kind, names in (("csr", ("indptr", "indices")), ("csc", ("indptr", "indices")), ("coo", ("row", "col"))):
        good = getattr(scipy.sparse, f"{kind}_matrix")(dense)
        arrays = {name: getattr(good, name) for name in (*names, "data")}
        for name in (*names, "data"):
            for how, change in INDEX.items():
                if name == "data" and how in ("far", "negative", "backwards", "fractions", "huge"):
                    continue
                parts = {
                    **arrays,
                    name: change(arrays[name]),
                    "shape": np.array([4, 6]),
                    "format": np.array(kind.encode()),
                }
                yield (
                    f"{kind} {name} {how}",
                    "scipy",
                    matrix("train_mat.npz", lambda p, parts=parts: np.savez(p, **parts)),
                )
        for shape in (
            (-1, 6),
            (4, -6),
            (4,),
            (4, 6, 1),
            (1 << 40, 6),
            (4, 1 << 31),
            (2**31 - 2, 2**31 - 2),
            ("a", "b"),
        ):
            parts = {**arrays, "shape": np.array(shape), "format": np.array(kind.encode())}
            yield (
                f"{kind} of shape {shape}",
                "scipy",
                matrix("train_mat.npz", lambda p, parts=parts: np.savez(p, **parts)),
            )
        state = pickle.dumps(good).replace(np.asarray(arrays[names[0]]).tobytes(), b"\xff" * arrays[names[0]].nbytes)
        yield f"{kind} pickle", "scipy", matrix("train_mat", lambda p, state=state: state)


def bomb(compress: Callable[[bytes], bytes], what: str, name: str) -> Callable[[Path], None]:
    """A table of 256 MiB of one line, of one quoted cell, or of one row again and again, compressed to nearly nothing.

    Compressed files may follow one another in one file, so that not all of it need be compressed here.
    """
    start = {"line": b"user_id,item_id\n", "quote": b'user_id,item_id\n"', "rows": b"user_id,item_id,split\n"}[what]
    again = {"rows": b"0,0,train\n"}.get(what, b"xxxxxxxxxx") * ((8 << 20) // 10)
    if name.endswith(".zip"):
        return lambda folder: (folder / name).write_bytes(compress(start + again * 32)) and None
    return lambda folder: (folder / name).write_bytes(compress(start) + compress(again) * 32) and None


KINDS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda b: gzip.compress(b, 1),
    "bz2": lambda b: bz2.compress(b, 1),
    "zst": lambda b: pa.compress(b, "zstd", asbytes=True),
    "xz": lambda b: lzma.compress(b, preset=0),
    "zip": lambda b: zipped({"a.csv": b}),
}


def tables_of(*kinds: str) -> Iterator[Case]:
    for kind in kinds:
        for what in ("line", "rows", "quote"):
            yield f"{kind} of {what}", "tables", bomb(KINDS[kind], what, f"interactions.csv.{kind}")


def slow_bombs() -> Iterator[Case]:
    """Tables that take long to compress."""
    yield from tables_of("bz2", "xz", "zip")


def bombs() -> Iterator[Case]:
    """Small files that stand for much."""
    yield from tables_of("gz", "zst")
    yield "gz of JSON lines", "tables", bomb(KINDS["gz"], "line", "interactions.jsonl.gz")
    yield "gz of JSON", "tables", table(gzip.compress(b"[" + b"[]," * (1 << 25), 1), "interactions.json.gz")

    def zeros() -> bytes:
        return npy(((256 << 20) // 8, 2), values=bytes(256 << 20))

    yield "npz of zeros", "tables", feature("a.npz", lambda p: zipped({"a.npy": zeros()}))
    sparse = {"format.npy": saved(np.array(b"csr")), "shape.npy": saved(np.array([4, 6]))}
    yield "sparse npz of zeros", "scipy", matrix("train_mat.npz", lambda p: zipped({"indptr.npy": zeros(), **sparse}))
    yield "pt of zeros", "tables", feature("a.pt", lambda p: zipped({"a/data/0": bytes(256 << 20), "a/data.pkl": b""}))
    yield "Parquet of one value", "tables", lambda folder: long_parquet(folder / "interactions.parquet")
    for name, content in {"item": b'{"0": [2000000000]}', "user": b'{"2000000000": [1]}'}.items():
        yield f"JSON of a far {name}", "scipy", matrix("train_mat.json", lambda p, content=content: content)
    yield "InvRL with a far id", "invrl", invrl("train.npy", saved(np.array([[0, 2_000_000_000], [1, 3]])))
    yield "words up to a far one", "invrl", invrl("feat_t.npy", saved(np.array([[0, 1], [1, 2_000_000_000]])))
    yield "a view", "tables", feature("a.pt", lambda p: tensor(torch.ones(1, 1).expand(1 << 20, 1 << 10)))


def long_parquet(path: Path) -> None:
    part = pa.table({name: pa.array(np.zeros(1 << 22, np.int64)) for name in ("user_id", "item_id", "split")})
    with pq.ParquetWriter(path, part.schema, compression="zstd") as out:
        for _ in range(30):
            out.write_table(part)


def texts() -> Iterator[Case]:
    """Tables and JSON that are no tables."""
    head = b"user_id,item_id,split\n"
    for name, content in {
        "many columns": b",".join(b"c%d" % n for n in range(50_000)) + b"\n" + b"1," * 50_000 + b"\n",
        "zero bytes": bytes(1 << 20),
        "control characters": head + b"\x1b[2J\x07,\x00,train\n",
        "an id of a million digits": head + b"9" * 1_000_000 + b",1,train\n",
        "a quote": b'"',
        "many quotes": b'"' * 3_000_001,
        "a quote and much": head + b'1,"2' + b"x\n" * 3_000_000,
        "line ends": b"\r" * 1_000_000 + b"\n" * 1_000_000,
        "broken UTF-8": head + b"\xc3\x28,\xf0\x28\x8c\xbc,train\n",
        "half of UTF-16": b"\xff\xfea",
        "commas": b"," * 1_000_000,
        "numbers": head + b"1e999,-inf,train\nnan,0x10,val\n",
    }.items():
        yield f"text of {name}", "tables", table(content)
    for name, content in {
        "depth": b"[" * 1_000_000,
        "depth by key": b'{"a":' * 100_000,
        "empty lists": b"[" + b"[]," * 1_000_000 + b"[]]",
        "digits": b'[{"user": ' + b"9" * 1_000_000 + b', "item": 1}]',
        "kinds": b'[{"user": [1], "item": {"a": 1}}, {"user": true, "item": null}]',
        "doubled keys": b'{"0": [1], "0": [2]}',
        "nothing": b"",
        "half": b'{"0": [1, 2',
        "constants": b'{"0": [NaN, Infinity]}',
        "halves of characters": rb'{"\ud800": ["\udfff"]}',
        "Python": b"{'a': __import__('os').makedirs('ran')}",
        "deep Python": b"{'a': " + b"(" * 5000,
    }.items():
        yield f"JSON of {name}", "tables", table(content, "interactions.json")
        yield f"JSON lines of {name}", "tables", table(content + b"\n" + content, "interactions.jsonl")
        yield f"JSON matrix of {name}", "scipy", matrix("train_mat.json", lambda p, content=content: content)


def damaged() -> Iterator[Case]:
    """Good files with some bytes changed, or cut off."""
    good = pa.table(
        {"user_id": [0, 1, 2] * 30, "item_id": [str(k % 7) for k in range(90)], "split": ["train", "val", "test"] * 30}
    )
    parquet, stream, file = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(good, parquet)
    for out, make in ((stream, pa.ipc.new_stream), (file, pa.ipc.new_file)):
        with make(out, good.schema) as writer:
            writer.write_table(good)
    npz = io.BytesIO()
    scipy.sparse.save_npz(npz, scipy.sparse.csr_matrix(np.eye(6)))
    originals: dict[str, tuple[str, bytes, Callable[[bytes], Callable[[Path], None]]]] = {
        "Parquet": ("tables", parquet.getvalue(), lambda b: table(b, "interactions.parquet")),
        "Arrow stream": ("tables", stream.getvalue(), lambda b: table(b, "interactions.arrow")),
        "Arrow file": ("tables", file.getvalue(), lambda b: table(b, "interactions.feather")),
        "gzip": ("tables", gzip.compress(b"user_id,item_id\n1,2\n" * 50), lambda b: table(b, "interactions.csv.gz")),
        "zstd": (
            "tables",
            pa.compress(b"user_id,item_id\n1,2\n" * 50, "zstd", asbytes=True),
            lambda b: table(b, "interactions.csv.zst"),
        ),
        "sparse npz": ("scipy", npz.getvalue(), lambda b: matrix("train_mat.npz", lambda p: b)),
        "npy": ("tables", saved(np.ones((6, 2))), lambda b: feature("a.npy", lambda p: b)),
        "pt": ("tables", tensor(torch.ones(6, 2)), lambda b: feature("a.pt", lambda p: b)),
        "pickle": ("tables", pickle.dumps({k: np.ones(3) for k in range(6)}), lambda b: feature("a.pkl", lambda p: b)),
    }
    for kind, (importer, data, place) in originals.items():
        for seed in range(6):
            yield f"{kind}, bytes changed {seed}", importer, place(flipped(data, seed))
        for share in (0.2, 0.6, 0.95):
            yield f"{kind}, cut at {share}", importer, place(data[: int(len(data) * share)])


def runners() -> Iterator[Case]:
    """What runs code where it is unpickled carelessly, in every place that is unpickled; and crafted pickles."""
    for protocol in range(6):
        payload = pickle.dumps(Payload(), protocol)
        yield f"payload {protocol} as a matrix", "scipy", matrix("train_mat", lambda p, b=payload: b)
        yield f"payload {protocol} as features", "tables", feature("a.pkl", lambda p, b=payload: b)
        yield f"payload {protocol} as an array", "tables", feature("a.npy", lambda p, b=payload: npy("(6, 2)", "|O", b))
        yield f"payload {protocol} as training data", "invrl", invrl("train.npy", npy("()", "|O", payload))
    yield "payload as a tensor", "tables", feature("a.pt", lambda p: tensor(Payload()))
    yield (
        "payload in a dict of tensors",
        "tables",
        feature("a.pt", lambda p: tensor({"a": torch.ones(2), "b": Payload()})),
    )
    yield "payload in npz", "tables", feature("a.npz", lambda p: np.savez(p, a=np.array([Payload()], dtype=object)))
    yield (
        "payload in a sparse npz",
        "scipy",
        matrix("train_mat.npz", lambda p: np.savez(p, data=np.array([Payload()], dtype=object), format=b"csr")),
    )
    for name, code in PICKLES.items():
        yield f"pickle of {name}, a matrix", "scipy", matrix("train_mat", lambda p, code=code: code)
        yield f"pickle of {name}, features", "tables", feature("a.pkl", lambda p, code=code: code)
        yield f"pickle of {name}, an array", "invrl", invrl("train.npy", npy("()", "|O", code))


def arrays() -> Iterator[Case]:
    """Headers of arrays that lie, and archives of something else."""
    for name, content in {
        "far": npy((1 << 40, 4)),
        "product": npy((1 << 20, 1 << 20, 1 << 20)),
        "negative": npy((-4, 2)),
        "code": npy("__import__('os').makedirs('ran')"),
        "depth": npy("(" * 90),
        "version": b"\x93NUMPY\x09\x00" + bytes(99),
        "long header": b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little") + bytes(99),
        "void": npy((6, 2), "|V1000000000"),
        "text": npy((6, 2), "<U100000000"),
        "nothing": b"",
    }.items():
        yield f"npy of {name}", "tables", feature("a.npy", lambda p, content=content: content)
        yield f"npy of {name}, training data", "invrl", invrl("train.npy", content)
        yield f"npz of {name}", "tables", feature("a.npz", lambda p, content=content: zipped({"a.npy": content}))
        yield (
            f"npz of {name}, a matrix",
            "scipy",
            matrix(
                "train_mat.npz",
                lambda p, content=content: zipped(
                    {"data.npy": content, "format.npy": saved(np.array(b"csr")), "shape.npy": saved(np.array([4, 6]))}
                ),
            ),
        )
    for name, content in {
        "another zip": zipped({"a.txt": b"x"}),
        "an empty zip": zipped({}),
        "no zip": b"PK\x03\x04" + bytes(99),
    }.items():
        yield f"npz that is {name}", "tables", feature("a.npz", lambda p, content=content: content)
        yield f"matrix that is {name}", "scipy", matrix("train_mat.npz", lambda p, content=content: content)
        yield f"pt that is {name}", "tables", feature("a.pt", lambda p, content=content: content)
        yield f"table that is {name}", "tables", table(content, "interactions.csv.zip")


def odd_files() -> Iterator[Case]:
    """What is no file, or leads elsewhere."""

    def pipe(folder: Path) -> None:
        os.mkfifo(folder / "interactions.csv")

    def device(folder: Path) -> None:
        (folder / "interactions.csv").symlink_to("/dev/zero")

    def loop(folder: Path) -> None:
        (folder / "interactions.csv").symlink_to(folder / "interactions.csv")

    def itself(folder: Path) -> None:
        (folder / "interactions.parquet").mkdir()
        (folder / "interactions.parquet" / "part-0.parquet").symlink_to(folder)

    yield from (("a pipe", "tables", pipe), ("a device", "tables", device), ("a loop", "tables", loop))
    yield "a folder in itself", "tables", itself
    yield "a feature that is a device", "tables", feature("a.npy", lambda p: p.symlink_to("/dev/zero"))
    for kind in ("elsewhere", "virtual", "soft", "outer", "unwritten", "damaged"):
        yield f"HDF5 {kind}", "tables", feature("a.h5", lambda p, kind=kind: hdf5(p, kind))


def hdf5(path: Path, kind: str) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        if kind == "elsewhere":
            file.create_dataset("a", (6, 2), dtype="u1", external=[("/etc/passwd", 0, 12)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((6, 2), "f4")
            layout[:] = h5py.VirtualSource("/tmp/other.h5", "a", (6, 2))
            file.create_virtual_dataset("a", layout)
        elif kind == "soft":
            file["a"] = h5py.SoftLink("/b")
        elif kind == "outer":
            file["a"] = h5py.ExternalLink("/tmp/other.h5", "a")
        elif kind == "unwritten":
            file.create_dataset("a", (1 << 30, 64), dtype="f4", chunks=(1024, 64))
        else:
            file["a"] = np.ones((6, 2))
    if kind == "damaged":
        path.write_bytes(flipped(path.read_bytes(), 0, 40))


PARTS = {
    part.__name__: part for part in (runners, spoiled_matrices, bombs, slow_bombs, repeats, texts, damaged, arrays)
}
PARTS |= {part.__name__: part for part in (odd_files, footers, expanding)}
