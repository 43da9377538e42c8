"""Features of many things, in parts that a killed run keeps, by this process or by Ray actors.

OUT.parts holds part-00000.parquet and so on until all are there; then OUT is written whole and OUT.parts goes. Ray
Data's map_batches is not used: its blocks have no fixed content that a killed call could find again on disk, and order
and batches, which a model's rounding depends on, would change with the number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from m3dist import checksums
from m3dist.config import digest
from m3dist.distributed import devices
from m3dist.features import models, sources
from m3dist.features.models import BadThing, Model
from m3dist.features.sources import Thing
from m3dist.storage.folders import Folder, refuse_other_kinds

_NAMED = 10  # bad things that are named


@dataclass(frozen=True)
class Settings:
    """kind: images, text or audio; model: see `features.models`; batch: things at once; part: things of a part; skip:
    leave bad things out in place of refusing them; workers: Ray actors, 0 for this process; gpus: of each."""

    kind: str
    model: str
    batch: int = 32
    part: int = 1024
    skip: bool = False
    workers: int = 0
    gpus: float = 0.0
    device: str = "auto"


class Maker:
    """Makes parts with one model."""

    def __init__(self, settings: Settings, folder: str, device: str | torch.device):
        self.settings, self.folder = settings, Folder(folder)
        self.model: Model = models.open_model(settings.kind, settings.model, devices.found(device))

    def make(self, at: int, things: list[Thing]) -> None:
        """Write a part: the features of its things, and in its metadata why others have none."""
        ids: list[str] = []
        rows: list[np.ndarray] = []
        bad: list[tuple[str, str]] = []
        for start in range(0, len(things), self.settings.batch):
            loaded: list[Any] = []
            here = []
            for thing in things[start : start + self.settings.batch]:
                try:
                    loaded.append(self.model.load(thing))
                    here.append(thing)
                except BadThing as error:
                    bad.append((thing.name, str(error)))
            if loaded and (self.settings.skip or not bad):
                x_Bd = self.model.encode(loaded)
                for thing, x_d in zip(here, x_Bd, strict=True):
                    if np.isfinite(x_d).all():
                        ids.append(thing.id)
                        rows.append(x_d)
                    else:
                        bad.append((thing.name, "its features are not finite"))
            if bad and not self.settings.skip:
                raise _refused(bad)
        width = len(rows[0]) if rows else 0
        flat = pa.array(np.concatenate(rows) if rows else np.empty(0, np.float32), pa.float32())
        offsets = pa.array(np.arange(len(rows) + 1) * width, pa.int32())
        table = pa.table({"item_id": pa.array(ids, pa.string()), "vector": pa.ListArray.from_arrays(offsets, flat)})
        with self.folder.writing(name_of(at)) as path:
            pq.write_table(table.replace_schema_metadata({"bad": json.dumps(bad)}), path)


def _refused(bad: list[tuple[str, str]]) -> ValueError:
    name, why = bad[0]
    return ValueError(f"{name}: {why}; --on-bad skip leaves such items without features")


def name_of(at: int) -> str:
    return f"part-{at:05d}.parquet"


def _opened(tensors: dict[str, Tensor], device: torch.device, settings: Settings, folder: str) -> Maker:
    return Maker(settings, folder, device)


def _made(maker: Maker, at: int, things: list[Thing]) -> None:
    maker.make(at, things)


def extract(things: list[Thing], out: Path, settings: Settings, say: Callable[[str], None]) -> int:
    """Write the features of `things` as a Parquet file that `m3dist prepare` reads: `item_id` and `vector`.

    Returns how many things have none. Raises ValueError on a bad thing unless `skip`, on an unknown model, where OUT
    is named as a file of another kind, and where OUT.parts holds parts of another call.
    """
    refuse_other_kinds(str(out))
    models.check(settings.kind, settings.model)
    out = out.absolute()
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"{out}: expected a file to write, in a folder that is there")
    folder = Folder(out.with_name(f"{out.name}.parts"))
    described = {
        "of": sources.fingerprint(things),
        "request": digest([settings.kind, settings.part, _weights(settings)]),
    }
    if folder.exists("parts.json"):
        if folder.read_json("parts.json") != described:
            raise ValueError(
                f"{folder}: holds parts of other {settings.kind} or another model; delete it, or change OUT"
            )
    else:
        folder.make()
        folder.write_json("parts.json", described)
    cut = [things[start : start + settings.part] for start in range(0, len(things), settings.part)]
    there = set(folder.names())
    missing = [at for at in range(len(cut)) if name_of(at) not in there]
    if settings.workers and missing:
        from m3dist.distributed.actors import ActorSettings, Pool

        resources = {"GPU": settings.gpus} if settings.gpus else {}
        actors = ActorSettings(min(settings.workers, len(missing)), resources, purpose="features", key="--workers")
        with Pool(_opened, {}, actors, settings, str(folder)) as pool:
            pool.map(_made, [(at, cut[at]) for at in missing])
    elif missing:
        maker = Maker(settings, str(folder), settings.device)
        for at in missing:
            maker.make(at, cut[at])
    return _joined(folder, [name_of(at) for at in range(len(cut))], out, settings.skip, say)


def _joined(folder: Folder, parts: list[str], out: Path, skip: bool, say: Callable[[str], None]) -> int:
    """Write all parts as one file; how many things were bad, of which the first are named."""
    tables = [pq.read_table(Path(folder.path) / name) for name in parts]
    bad = [one for table in tables for one in json.loads((table.schema.metadata or {})[b"bad"])]
    if bad and not skip:  # of parts that a call with --on-bad skip left
        raise _refused(bad)
    whole = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    if not whole.num_rows:
        raise ValueError(f"{out}: no features, for all {len(bad)} were bad; the first is {bad[0][0]}: {bad[0][1]}")
    for name, why in bad[:_NAMED]:
        say(f"skipped: {name}: {why}")
    if len(bad) > _NAMED:
        say(f"skipped: {len(bad) - _NAMED} more")
    with Folder(out).writing() as path:
        pq.write_table(whole, path)
    folder.remove()
    width = len(whole["vector"][0])
    say(f"{whole.num_rows} of {whole.num_rows + len(bad)} items have features of {width} columns: {out}")
    return len(bad)


def _weights(settings: Settings) -> list[str]:
    """A model's name and the checksums of its files."""
    root = Path(settings.model)
    if settings.kind == "audio":
        return [settings.model]
    return [f"{path.relative_to(root)} {checksums.of_file(path)}" for path in sorted(root.rglob("*")) if path.is_file()]
