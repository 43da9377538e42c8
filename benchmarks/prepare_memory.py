"""What `m3dist prepare tables` needs: peak memory and processor time against the number of interactions.

    python benchmarks/prepare_memory.py --interactions 20000000 --ids strings --split random --format csv
    python benchmarks/prepare_memory.py --format csv --against ../older-checkout --turns 3

Writes a file of random interactions (users are drawn unevenly, so there are duplicates), imports it in a process of
its own and prints that process's peak RSS, its processor time and bytes per interaction. RSS before the import
(interpreter and libraries) is printed beside it. With --against, another checkout imports the same file in turns,
and the ratios of this one to it are printed.
"""

from __future__ import annotations

import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

ROWS = 1 << 20
GIB = 1 << 20  # in KiB


def generate(path: Path, n: int, users: int, items: int, kind: tuple[str, str]) -> None:
    """Write n interactions, a block at a time. kind: ids (dense, sparse, strings) and split (column or a strategy)."""
    ids, split = kind
    rng = np.random.default_rng(0)
    labels = pa.array(["train", "val", "test"])
    out: Any = None
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
            columns["split"] = pa.DictionaryArray.from_arrays(pa.array(code), labels).dictionary_decode()
        table = pa.table(columns)
        if out is None and path.suffix == ".csv":
            out = pacsv.CSVWriter(path, table.schema, write_options=pacsv.WriteOptions(quoting_style="none"))
        out = out or pq.ParquetWriter(path, table.schema, compression="snappy")
        out.write_table(table)
    assert out is not None
    out.close()


def peak_kib() -> int:
    """Peak RSS of this process. Not getrusage, whose value a child takes over from the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def child(src: Path, dst: Path, split: str) -> None:
    """Import in this process, through the command line, and print processor seconds and peak RSS in KiB."""
    command = [*sys.argv[:1], "prepare", "tables", str(src), str(dst), "--overlap", "drop"]
    sys.argv = command if split == "column" else [*command, "--split", split]
    import m3dist.data.dataset  # noqa: F401  # loaded before the count begins

    before, started, wall = peak_kib(), time.process_time(), time.perf_counter()
    try:
        runpy.run_module("m3dist", run_name="__main__")
    except SystemExit as done:
        if done.code:
            raise
    meta = json.loads((dst / "dataset.json").read_text())
    print()
    print(
        json.dumps(
            {
                "seconds": time.process_time() - started,
                "wall": time.perf_counter() - wall,
                "before": before,
                "peak": peak_kib(),
                "kept": sum(meta["interactions"].values()),
                "fingerprint": meta["fingerprint"],
            }
        )
    )


def measure(checkout: Path, src: Path, dst: Path, split: str) -> dict[str, Any]:
    """One import by the code of a checkout."""
    command = [sys.executable, __file__, "--split", split, "--child", str(src), str(dst)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@click.command()
@click.option("--interactions", default=20_000_000, show_default=True)
@click.option("--users", default=1_000_000, show_default=True)
@click.option("--items", default=200_000, show_default=True)
@click.option("--ids", type=click.Choice(["dense", "sparse", "strings"]), default="dense", show_default=True)
@click.option("--split", type=click.Choice(["column", "random", "leave-last-out", "temporal"]), default="column")
@click.option("--format", "form", type=click.Choice(["parquet", "csv"]), default="parquet", show_default=True)
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Another checkout, measured in turns.")
@click.option("--turns", default=1, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the temporary files go.")
@click.option("--child", "as_child", nargs=2, type=click.Path(path_type=Path), hidden=True)
def main(interactions: int, users: int, items: int, split: str, as_child: Any, **o: Any) -> None:
    if as_child:
        return child(*as_child, split)
    here = Path(__file__).resolve().parents[1]
    checkouts = {"this": here} | ({"other": o["against"].resolve()} if o["against"] else {})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory(dir=o["folder"]) as temporary:
        src = Path(temporary) / f"interactions.{o['form']}"
        generate(src, interactions, users, items, (o["ids"], split))
        size = src.stat().st_size
        for _ in range(o["turns"]):
            for name, checkout in checkouts.items():
                found[name].append(measure(checkout, src, Path(temporary) / name, split))
    print(f"{interactions:,} interactions, {o['ids']} ids, split {split}: {o['form']} of {size / 2**30:.2f} GiB")
    for name, results in found.items():
        peak = max(r["peak"] for r in results)
        per = 1024 * (peak - results[0]["before"]) / interactions
        cpu, wall = (", ".join(f"{r[key]:.1f}" for r in results) for key in ("seconds", "wall"))
        print(
            f"{name:>5}: kept {results[0]['kept']:,}, fingerprint {results[0]['fingerprint']}; peak RSS "
            f"{peak / GIB:.2f} GiB (before {results[0]['before'] / GIB:.2f}), {per:.0f} bytes an interaction; "
            f"processor {cpu} s, wall {wall} s"
        )
    if o["against"]:
        ratio = statistics.median(
            a["seconds"] / b["seconds"] for a, b in zip(found["this"], found["other"], strict=True)
        )
        print(f"this / other, median of processor time in turns: {ratio:.2f}")


if __name__ == "__main__":
    main()
