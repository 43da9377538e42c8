"""`python -m benchmarks.indexes FOLDER`: approximate indexes of exported vectors against the exact one.

FOLDER is what `m3dist export RUN FOLDER` wrote. Of faiss's indexes by inner product, HNSW and IVF at several settings:
the share of the exact 20 best that they find, users a second of one thread (CPU seconds), and seconds to build.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

K = 20
USERS = 2_000  # that are looked up
HNSW = (32, 64, 128, 256)  # efSearch
IVF = (1, 4, 16, 64)  # nprobe


@dataclass(frozen=True)
class Row:
    """One index: recall of the exact K best, users a second, seconds to build."""

    index: str
    setting: str
    recall: float
    rate: float
    build: float


def vectors(path: Path) -> np.ndarray:
    """Float32 [n, W], of a table that `m3dist export` wrote."""
    column = pq.read_table(path, columns=["vector"])["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)


def measure(users_UW: np.ndarray, items_IW: np.ndarray) -> Iterator[Row]:
    """Every index and setting, the exact one first."""
    import faiss

    faiss.omp_set_num_threads(1)
    chosen = np.random.default_rng(0).permutation(len(users_UW))[:USERS]
    query_uW, width = np.ascontiguousarray(users_UW[chosen]), items_IW.shape[1]
    lists = max(1, round(len(items_IW) ** 0.5))
    quantizer = faiss.IndexFlatIP(width)
    kinds: list[tuple[str, Any, str, tuple[int, ...]]] = [
        ("flat", faiss.IndexFlatIP(width), "", (0,)),
        ("HNSW, M 32, efConstruction 200", _hnsw(faiss, width), "efSearch", HNSW),
        (f"IVF, {lists} lists", faiss.IndexIVFFlat(quantizer, width, lists, faiss.METRIC_INNER_PRODUCT), "nprobe", IVF),
    ]
    exact_uk = None
    for name, index, key, settings in kinds:
        build, _ = _timed(lambda index=index: (index.train(items_IW), index.add(items_IW)))
        for setting in settings:
            if key == "efSearch":
                index.hnsw.efSearch = setting
            elif key:
                index.nprobe = setting
            seconds, (_, found_uk) = _timed(lambda index=index: index.search(query_uW, K))
            exact_uk = found_uk if exact_uk is None else exact_uk
            recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found_uk, exact_uk, strict=True)])
            yield Row(name, f"{key} {setting}" if key else "", float(recall), len(query_uW) / seconds, build)


def _hnsw(faiss: Any, width: int) -> Any:
    index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    return index


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gave."""
    began = time.process_time()
    out = call()
    return time.process_time() - began, out


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the numbers here.")
def main(folder: Path, path: Path | None) -> None:
    users_UW, items_IW = vectors(folder / "users.parquet"), vectors(folder / "items.parquet")
    click.echo(f"{len(items_IW):,} items of {items_IW.shape[1]} numbers\n")
    click.echo(f"| index | setting | recall@{K} | users/s | s to build |\n|---|---|---|---|---|")
    rows = []
    for row in measure(users_UW, items_IW):
        rows.append(row)
        click.echo(f"| {row.index} | {row.setting} | {row.recall:.3f} | {row.rate:,.0f} | {row.build:.1f} |")
    if path:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
