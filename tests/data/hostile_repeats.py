"""Small files in which something long stands again and again: ids, titles, vectors, lists."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_makers import feature, interactions, matrix, table

ROWS, WIDTH = 300_000, 1000
SPLITS = pa.array(["train", "val", "test"])


def long_ids(distinct: int) -> pa.Table:
    """Users of a thousand characters."""
    row = np.arange(ROWS)
    users = pa.array(["x" * WIDTH + str(u) for u in range(distinct)]).take(pa.array(row % distinct))
    return pa.table({"user_id": users, "item_id": row // 3, "split": SPLITS.take(pa.array(row % 3))})


def arrow(path: Path, content: pa.Table, compression: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(path, content.schema, options=options) as writer:
        writer.write_table(content)


def lines(distinct: int, form: str) -> bytes:
    labels = SPLITS.to_pylist()
    return "".join(form % ("x" * WIDTH + str(k % distinct), k // 3, labels[k % 3]) for k in range(ROWS)).encode()


def vectors(path: Path, kind: str) -> None:
    """Parquet of zeros, which take no space in it."""
    if kind == "columns":
        content = pa.table({f"c{k}": np.zeros(600_000, np.float32) for k in range(200)})
    else:
        width = 10_000_000
        values = pa.array(np.zeros(6 * width, np.float32))
        ends = np.arange(0, 7 * width, width, dtype=np.int32)
        fixed = kind == "fixed lists"
        rows: Any = (
            pa.FixedSizeListArray.from_arrays(values, width) if fixed else pa.ListArray.from_arrays(ends, values)
        )
        content = pa.table({"item_id": np.arange(6), "vector": rows})
    pq.write_table(content, path, compression="zstd")


def titles(folder: Path) -> None:
    interactions(folder)
    text = pa.array(["t" * 2000]).take(pa.array(np.zeros(ROWS, int)))
    pq.write_table(pa.table({"item_id": np.arange(ROWS), "title": text}), folder / "items.parquet", compression="zstd")


def repeats() -> Iterator[tuple[str, str, Any]]:
    """Small files that stand for much because they repeat themselves."""
    items = list(range(200_000))
    shared = dict.fromkeys(range(300), items)
    for distinct in (3, ROWS):
        for dictionary in (True, False):
            yield (
                f"Parquet of {distinct} long ids, dictionary {dictionary}",
                "tables",
                lambda folder, n=distinct, d=dictionary: pq.write_table(
                    long_ids(n), folder / "interactions.parquet", compression="zstd", use_dictionary=d
                ),
            )
        for compression in ("zstd", "lz4"):
            yield (
                f"Arrow of {distinct} long ids, {compression}",
                "tables",
                lambda folder, n=distinct, c=compression: arrow(folder / "interactions.arrow", long_ids(n), c),
            )
        for name, form in {"csv": "%s,%d,%s\n", "jsonl": '{"user_id": "%s", "item_id": %d, "split": "%s"}\n'}.items():
            head = b"user_id,item_id,split\n" if name == "csv" else b""
            yield (
                f"gzip {name} of {distinct} long ids",
                "tables",
                lambda folder, n=distinct, f=form, head=head, name=name: table(
                    gzip.compress(head + lines(n, f), 6), f"interactions.{name}.gz"
                )(folder),
            )
    for kind in ("columns", "lists", "fixed lists"):
        yield f"Parquet of zeros in {kind}", "tables", feature("a.parquet", lambda p, kind=kind: vectors(p, kind))
    yield "Parquet of long titles", "tables", titles
    yield (
        "a pickled list that many users share",
        "scipy",
        matrix("train_mat", lambda p: pickle.dumps(shared)),
    )
    yield (
        "Arrow of zeros",
        "tables",
        lambda folder: arrow(
            folder / "interactions.arrow",
            pa.table({name: np.zeros(60_000_000, np.int64) for name in ("user_id", "item_id", "split")}),
            "zstd",
        ),
    )
