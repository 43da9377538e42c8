"""Stage outputs on disk: tensors as safetensors and plain values as JSON, complete when their meta.json is there.

An artifact is a folder `<stage>-<key>`; the key hashes every config value, the data and the seed that made it. Tables
that workers hold in parts are written in parts, by whoever holds them, and read whole. So is what is kept of each
interaction, which is read only when it is asked for.

Shapes: n training interactions, n_w of this worker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from m3dist.distributed.engine import Engine
from m3dist.storage.folders import Folder
from m3dist.storage.shards import Shards

DIGEST = "tensors"  # of meta.json: the digest of the tensors that were written with it
_SERIES = "interactions"  # of meta.json: what is kept of each interaction, and how many of them each worker's file has


@dataclass(frozen=True)
class Output:
    """What a stage leaves behind: tensors, plain values, of sharded tables the rows that this worker holds, and what is
    kept of each of its training interactions, [n_w]."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    rows: dict[str, Tensor] = field(default_factory=dict)
    interactions: dict[str, Tensor] = field(default_factory=dict)


class Store:
    """The artifacts of one run, or those that several runs share."""

    def __init__(self, root: Folder | str | Path):
        self.root = root if isinstance(root, Folder) else Folder(root)

    def path(self, stage: str, key: str) -> Folder:
        return self.root / f"{stage}-{key}"

    def has(self, stage: str, key: str) -> bool:
        return self.path(stage, key).exists("meta.json")

    def save(self, stage: str, key: str, output: Output, engine: Engine | None = None) -> None:
        """Write an artifact. Every worker calls it; rank 0 writes what all agree on, last of all meta.json."""
        engine, folder = engine or Engine(), self.path(stage, key)
        if engine.rank_zero:
            folder.remove("meta.json")
        engine.barrier()
        parts = output.rows | output.interactions
        if parts:
            Shards(folder, engine.world).write(engine.rank, parts)
        each = engine.collect({name: len(x) for name, x in parts.items()})
        if engine.rank_zero:
            digest = folder.write_tensors("tensors.safetensors", output.tensors)
            sharded = {
                name: {"rows": [count[name] for count in each], "width": x.shape[1]} for name, x in output.rows.items()
            }
            series = {
                name: {"counts": [count[name] for count in each], "type": str(x.dtype).removeprefix("torch.")}
                for name, x in output.interactions.items()
            }
            further = {name: x for name, x in (("sharded", sharded), (_SERIES, series)) if x}
            folder.write_json("meta.json", {**output.meta, DIGEST: digest, **further})

    def load(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors, whole, on the CPU, and plain values; not what is kept of each interaction.

        Raises ValueError when the artifact is damaged.
        """
        with self._reading(stage, key) as folder:
            meta = folder.read_json("meta.json")
            meta.pop(_SERIES, None)
            tensors = folder.read_tensors("tensors.safetensors", meta.pop(DIGEST, None))
            for name, table in meta.pop("sharded", {}).items():
                tensors[name] = torch.empty(sum(table["rows"]), table["width"])
                Shards(folder, len(table["rows"])).read(name, tensors[name], 0, table["rows"])
            return tensors, meta

    def interactions(self, stage: str, key: str) -> dict[str, Tensor]:
        """What is kept of each training interaction, [n], in the data set's order; as `load` else."""
        with self._reading(stage, key) as folder:
            out = {}
            for name, series in folder.read_json("meta.json").get(_SERIES, {}).items():
                out[name] = torch.empty(sum(series["counts"]), dtype=getattr(torch, series["type"]))
                Shards(folder, len(series["counts"])).read(name, out[name], 0, series["counts"])
            return out

    @contextlib.contextmanager
    def _reading(self, stage: str, key: str) -> Iterator[Folder]:
        """An artifact's folder. Raises ValueError in place of the errors by which damage shows."""
        folder = self.path(stage, key)
        try:
            yield folder
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder}: damaged artifact ({error}); delete the folder and train again") from None

    def meta(self, stage: str, key: str) -> dict[str, Any]:
        """Raises FileNotFoundError when there is no such artifact, and ValueError when it is damaged."""
        try:
            meta = self.path(stage, key).read_json("meta.json")
        except ValueError as error:
            raise ValueError(f"{error}; delete the folder {self.path(stage, key)} and train again") from None
        return {name: x for name, x in meta.items() if name not in (DIGEST, _SERIES)}
