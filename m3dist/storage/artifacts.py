"""Stage outputs on disk: tensors as safetensors and plain values as JSON, complete when their meta.json is there.

An artifact is a folder `<stage>-<key>`; the key hashes every config value, the data and the seed that made it. Tables
that workers hold in parts are written in parts, by whoever holds them, and read whole.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Output:
    """What a stage leaves behind: tensors, plain values, and of sharded tables the rows that this worker holds."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    rows: dict[str, Tensor] = field(default_factory=dict)


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
        if output.rows:
            Shards(folder, engine.world).write(engine.rank, output.rows)
        each = engine.collect({name: len(x) for name, x in output.rows.items()})
        if engine.rank_zero:
            digest = folder.write_tensors("tensors.safetensors", output.tensors)
            sharded = {
                name: {"rows": [count[name] for count in each], "width": x.shape[1]} for name, x in output.rows.items()
            }
            further = {DIGEST: digest, **({"sharded": sharded} if sharded else {})}
            folder.write_json("meta.json", {**output.meta, **further})

    def load(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors, whole, on the CPU. Raises ValueError when the artifact is damaged."""
        folder = self.path(stage, key)
        try:
            meta = folder.read_json("meta.json")
            tensors = folder.read_tensors("tensors.safetensors", meta.pop(DIGEST, None))
            for name, table in meta.pop("sharded", {}).items():
                tensors[name] = torch.empty(sum(table["rows"]), table["width"])
                Shards(folder, len(table["rows"])).read(name, tensors[name], 0, table["rows"])
            return tensors, meta
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder}: damaged artifact ({error}); delete the folder and train again") from None

    def meta(self, stage: str, key: str) -> dict[str, Any]:
        """Raises FileNotFoundError when there is no such artifact, and ValueError when it is damaged."""
        try:
            meta = self.path(stage, key).read_json("meta.json")
        except ValueError as error:
            raise ValueError(f"{error}; delete the folder {self.path(stage, key)} and train again") from None
        meta.pop(DIGEST, None)
        return meta
