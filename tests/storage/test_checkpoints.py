"""Unfinished stages on disk and in a store."""

from __future__ import annotations

import torch

from m3dist.config import Checkpoint
from m3dist.distributed.engine import Engine
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder


def test_the_last_checkpoints_and_those_they_need_are_kept(folder: Folder) -> None:
    saves = Checkpoints(folder, "key", Checkpoint(keep=2), Engine())
    saves.save("best-0", {}, {"x": torch.zeros(1)})
    for epoch in range(4):
        saves.save(f"{epoch:05d}-0", {"epoch": epoch}, {"x": torch.full((1,), epoch)}, needs=["best-0"])
    assert folder.names() == ["00002-0", "00003-0", "best-0"]
    (folder / "00009-0").write_tensors("state.safetensors", {"x": torch.ones(1)})  # cut off before its meta.json
    latest = saves.latest()
    assert latest is not None
    assert (latest.meta["epoch"], latest.tensors()["x"].item()) == (3, 3)
    saves.save("best-4", {}, {"x": torch.zeros(1)})
    for epoch in (4, 5):
        saves.save(f"{epoch:05d}-0", {"epoch": epoch}, {"x": torch.zeros(1)}, needs=["best-4"])
    assert folder.names() == ["00004-0", "00005-0", "best-4"]
