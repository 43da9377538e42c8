"""What `m3dist prepare tables` needs in memory: peak RSS against the number of interactions.

    python benchmarks/prepare_memory.py --interactions 20000000 --ids strings --split random

Writes a Parquet file of random interactions (users are drawn unevenly, so there are duplicates), imports it in a
process of its own and prints that process's peak RSS, its time, and bytes per interaction. RSS before the import
(interpreter and libraries) is printed beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS = 1 << 20


def generate(path: Path, n: int, users: int, items: int, ids: str, split: str) -> None:
    """Write n interactions, a block at a time."""
    rng = np.random.default_rng(0)
    labels = pa.array(["train", "val", "test"])
    out = None
    for start in range(0, n, ROWS):
        b = min(ROWS, n - start)
        user = (users * rng.random(b) ** 1.5).astype(np.int64)
        item = (items * rng.random(b) ** 2).astype(np.int64)
        columns = {"user_id": user, "item_id": item}
        if ids == "sparse":
            columns = {name: column * 1_000_003 + 7 for name, column in columns.items()}
        if ids == "strings":
            text = {name: pc.cast(pa.array(column), pa.string()) for name, column in columns.items()}
            columns = {name: pc.binary_join_element_wise(name[0], column, "") for name, column in text.items()}
        columns["timestamp"] = rng.integers(1_500_000_000, 1_700_000_000, b)
        if split == "column":
            code = rng.choice(3, b, p=[0.8, 0.1, 0.1]).astype(np.int8)
            columns["split"] = pa.DictionaryArray.from_arrays(pa.array(code), labels)
        table = pa.table(columns)
        out = out or pq.ParquetWriter(path, table.schema, compression="snappy")
        out.write_table(table)
    assert out is not None
    out.close()


def peak_kib() -> int:
    """Peak RSS of this process. Not getrusage, whose value a child takes over from the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def child(src: Path, dst: Path, split: str) -> None:
    """Import in this process and print peak RSS, in KiB, before and after."""
    from m3dist.data.importers import common, tables

    before = peak_kib()
    options = tables.Options() if split == "column" else tables.Options(split=split)
    started = time.perf_counter()
    source = tables.read(src, options)
    read = peak_kib()
    meta = common.write(source, dst, overlap="drop")
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "before": before,
                "read": read,
                "peak": peak_kib(),
                "kept": sum(meta["interactions"].values()),
            }
        )
    )


@click.command()
@click.option("--interactions", default=20_000_000, show_default=True)
@click.option("--users", default=1_000_000, show_default=True)
@click.option("--items", default=200_000, show_default=True)
@click.option("--ids", type=click.Choice(["dense", "sparse", "strings"]), default="dense", show_default=True)
@click.option("--split", type=click.Choice(["column", "random", "leave-last-out", "temporal"]), default="column")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the temporary files go.")
@click.option("--child", "as_child", nargs=2, type=click.Path(path_type=Path), hidden=True)
def main(interactions: int, users: int, items: int, ids: str, split: str, folder: Path | None, as_child) -> None:
    if as_child:
        return child(*as_child, split)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        src = Path(temporary) / "interactions.parquet"
        generate(src, interactions, users, items, ids, split)
        size = src.stat().st_size
        command = [sys.executable, __file__, "--split", split, "--child", str(src), str(Path(temporary) / "dst")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    gib = 1 << 20
    per = 1024 * (result["peak"] - result["before"]) / interactions
    print(
        f"{interactions:,} interactions, {ids} ids, split {split}: file {size / 2**30:.2f} GiB, "
        f"kept {result['kept']:,}; peak RSS {result['peak'] / gib:.2f} GiB (after reading {result['read'] / gib:.2f}, "
        f"before {result['before'] / gib:.2f}), {per:.0f} bytes an interaction, "
        f"{result['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
