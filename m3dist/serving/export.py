"""A finished run as files that other programs read: vectors in Parquet, an index of faiss, a model of ONNX.

Whatever the format, DST holds users.parquet and items.parquet (id, vector), whose inner products are the run's scores,
card.json and README.md, which say what they are.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import m3dist
from m3dist.method.fused import Fused
from m3dist.serving.vectors import Vectors, column
from m3dist.storage.folders import Folder

_LARGEST = 2_000_000_000  # bytes of a protobuf

if TYPE_CHECKING:
    from m3dist.serving.run import Run


def write(run: Run, vectors: Vectors, target: Folder, kind: str) -> dict[str, str]:
    """Write a format into a folder; the files' SHA-256 by name.

    Raises ValueError on an unknown format, one whose packages are not installed, a folder that cannot be written,
    or one whose files of these names no export wrote.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r}: no such format; expected one of {', '.join(FORMATS)}")
    further = FORMATS[kind]
    makes = _tables(run, vectors) | (further(run, vectors) if further else {})
    try:
        if not target.exists("card.json"):
            if others := [name for name in ("README.md", *makes) if target.exists(name)]:
                raise ValueError(f"{target}: holds a {others[0]} that no export wrote; choose another folder")
            target.write_json("card.json", {})  # by which the next one knows files of one that was killed
        sums = {name: _written(target, name, make) for name, make in makes.items()}
        content = card(run, vectors, kind, sums)
        target.write_json("card.json", content)
        target.write_text("README.md", readme(content))
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from None
    return sums


Make = Callable[[Path], None]


def _written(target: Folder, name: str, make: Make) -> str:
    with target.writing(name) as path:
        make(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _tables(run: Run, vectors: Vectors) -> dict[str, Make]:
    def users(path: Path) -> None:
        with pq.ParquetWriter(path, _schema(vectors.group.ids.type, vectors.width)) as writer:
            for some, vector_uW in vectors.blocks():
                writer.write_table(_table(vectors.group.ids.take(pa.array(some.here)), vector_uW))

    def items(path: Path) -> None:
        pq.write_table(_table(run.catalogue.ids, vectors.item_IW), path)

    return {"users.parquet": users, "items.parquet": items}


def _schema(ids: pa.DataType, width: int) -> pa.Schema:
    return pa.schema({"id": ids, "vector": pa.list_(pa.float32(), width)})


def _table(ids: pa.ChunkedArray, vector_nW: torch.Tensor) -> pa.Table:
    return pa.table([ids, column(vector_nW)], schema=_schema(ids.type, vector_nW.shape[1]))


def _faiss(run: Run, vectors: Vectors) -> dict[str, Make]:
    """index.faiss: exact search by inner product; label i is row i of items.parquet."""
    try:
        import faiss
    except ImportError:
        raise ValueError('format faiss: faiss is not installed; pip install "m3dist[export]"') from None

    def index(path: Path) -> None:
        made = faiss.IndexFlatIP(vectors.width)
        made.add(np.ascontiguousarray(vectors.item_IW.cpu().numpy()))
        faiss.write_index(made, str(path))

    return {"index.faiss": index}


def _histories(run: Run, vectors: Vectors) -> dict[str, Make]:
    """histories.onnx: (history [u, T], k [1]) to (item [u, k], score [u, k]), see `serving.histories`."""
    from m3dist.serving import histories

    if not isinstance(run.score, Fused):
        raise ValueError(f"format onnx-histories: model={run.config.model} ranks no new users")
    try:
        import onnxscript  # noqa: F401  what torch exports with
    except ImportError:
        raise ValueError('format onnx-histories: onnxscript is not installed; pip install "m3dist[export]"') from None
    _fits("onnx-histories", 4 * vectors.width * len(vectors.item_IW))
    fold_in, score = run.fold_in, run.score
    return {"histories.onnx": lambda path: histories.write(path, fold_in, score)}


def _fits(kind: str, size: int) -> None:
    """Raises ValueError where vectors of `size` bytes do not fit into one file."""
    if size > _LARGEST:
        raise ValueError(f"format {kind}: {size / 2**30:.1f} GiB of vectors, and a file holds 2; use vectors or faiss")


def _onnx(run: Run, vectors: Vectors) -> dict[str, Make]:
    """model.onnx: (user [u], seen [n, 2], k [1]) to (item [u, k], score [u, k]), all by rows of the tables.

    seen: pairs of a place in `user` and an item that this user is not to get.
    """
    try:
        import onnx
    except ImportError:
        raise ValueError('format onnx: onnx is not installed; pip install "m3dist[export]"') from None
    from onnx import TensorProto, helper, numpy_helper

    _fits("onnx", 4 * vectors.width * (len(vectors.item_IW) + len(vectors.group.users)))

    def model(path: Path) -> None:
        user_UW = torch.cat([vector_uW for _, vector_uW in vectors.blocks()]).cpu().numpy()
        hidden = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [float("-inf")])
        nodes = [
            helper.make_node("Gather", ["users", "user"], ["row"]),
            helper.make_node("MatMul", ["row", "items"], ["scores"]),
            helper.make_node("Shape", ["seen"], ["pairs"], start=0, end=1),
            helper.make_node("ConstantOfShape", ["pairs"], ["away"], value=hidden),
            helper.make_node("ScatterND", ["scores", "seen", "away"], ["unseen"]),
            helper.make_node("TopK", ["unseen", "k"], ["score", "item"]),
        ]
        shapes: dict[str, list[str | int]] = {
            "user": ["u"],
            "seen": ["n", 2],
            "k": [1],
            "score": ["u", "K"],
            "item": ["u", "K"],
        }
        kinds = {name: TensorProto.FLOAT if name == "score" else TensorProto.INT64 for name in shapes}
        value = {name: helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in shapes}
        item_WI = np.ascontiguousarray(vectors.item_IW.cpu().numpy().T)
        tables = [numpy_helper.from_array(user_UW, "users"), numpy_helper.from_array(item_WI, "items")]
        inputs, outputs = [value[x] for x in ("user", "seen", "k")], [value[x] for x in ("item", "score")]
        graph = helper.make_graph(nodes, "m3dist", inputs, outputs, tables)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        onnx.save(made, str(path))

    return {"model.onnx": model}


# by name: files beside the vectors, and how each is written
FORMATS: dict[str, Callable[[Run, Vectors], dict[str, Make]] | None] = {
    "vectors": None,
    "faiss": _faiss,
    "onnx": _onnx,
    "onnx-histories": _histories,
}


def card(run: Run, vectors: Vectors, kind: str, sums: dict[str, str]) -> dict[str, Any]:
    """What is said of an export: data, config, metrics, versions and checksums."""
    meta = run.dataset.meta
    return {
        "format": kind,
        "model": run.config.model,
        "run": run.root.uri,
        "data": {
            "name": run.dataset.name,
            "fingerprint": run.dataset.fingerprint,
            "users": run.dataset.n_users,
            "items": run.dataset.n_items,
            "interactions": meta["interactions"],
            "modalities": run.dataset.modalities,
        },
        "vectors": {"users": len(vectors.group.users), "items": len(vectors.item_IW), "width": vectors.width},
        "metrics": {split: run.result[split] for split in ("validation", "test") if split in run.result},
        "config": run.config.model_dump(mode="json"),
        "versions": {
            "trained": run.root.read_json("versions.json") if run.root.exists("versions.json") else {},
            "exported": {"m3dist": m3dist.__version__, "python": platform.python_version(), "torch": torch.__version__},
        },
        "sha256": sums,
    }


def readme(card: dict[str, Any]) -> str:
    """The same for people."""
    data, vectors = card["data"], card["vectors"]
    modalities = ", ".join(f"{name} ({width})" for name, width in data["modalities"].items()) or "none"
    counts = ", ".join(f"{n:,} {split}" for split, n in data["interactions"].items())
    metrics = [f"| {name} | {value:.4f} |" for name, value in sorted(card["metrics"].get("test", {}).items())]
    lines = [
        f"# {card['model']} on {data['name']}",
        "",
        f"Trained and exported by m3dist {card['versions']['exported']['m3dist']} from {card['run']}; config, versions "
        "and checksums are in card.json.",
        "",
        f"- Data: {data['users']:,} users, {data['items']:,} items; interactions: {counts}; features: {modalities}.",
        f"- users.parquet ({vectors['users']:,} rows) and items.parquet ({vectors['items']:,} rows): `id` and `vector` "
        f"of {vectors['width']} numbers. The inner product of a user's and an item's is the run's score, the larger "
        "the better. What a user has seen is not left out.",
    ]
    if "index.faiss" in card["sha256"]:
        lines.append("- index.faiss: exact search by inner product; label i is row i of items.parquet.")
    if "model.onnx" in card["sha256"]:
        lines.append(
            "- model.onnx: from `user` (rows of users.parquet), `seen` (pairs of a place in `user` and a row of "
            "items.parquet that is left out) and `k` to `item` (rows of items.parquet) and `score`, [users, k] each."
        )
    if "histories.onnx" in card["sha256"]:
        lines.append(
            "- histories.onnx: from `history` (rows of items.parquet that a user has seen, [users, T], with -1 behind "
            "shorter ones and no row twice) and `k` to `item` and `score`, [users, k] each, without what was seen. The "
            "users need not have been trained."
        )
    if metrics:
        lines += ["", "| metric, test split | value |", "|---|---|", *metrics]
    return "\n".join(lines) + "\n"
