"""Unfinished stages on disk and in a store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m3dist.config import Checkpoint
from m3dist.distributed.engine import Engine
from m3dist.storage.checkpoints import Checkpoints, Rows
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


def test_rows_of_tables_are_read_by_range(folder: Folder) -> None:
    saves, x = Checkpoints(folder, "key", Checkpoint(), Engine()), torch.rand(7, 3)
    saves.save("00001-0", {"epoch": 1}, {}, Rows({"user/weight/0": x}))
    saved = saves.latest()
    assert saved is not None
    out = torch.empty(3, 3)
    saved.read("user/weight/0", out, 2)
    assert torch.equal(out, x[2:5])


@pytest.mark.parametrize("file", ["state.safetensors", "rows-00000-of-00001.safetensors"])
def test_damaged_checkpoints_are_named(file: str, tmp_path: Path) -> None:
    saves = Checkpoints(Folder(tmp_path), "key", Checkpoint(), Engine())
    saves.save("00001-0", {}, {"x": torch.zeros(2)}, Rows({"user": torch.rand(7, 3)}))
    (tmp_path / "00001-0" / file).write_bytes(b"no")
    saved = saves.latest()
    assert saved is not None
    with pytest.raises(ValueError, match=r"00001-0: damaged checkpoint .* delete the folder and train again"):
        saved.read("user", torch.empty(7, 3), 0) if file.startswith("rows") else saved.tensors()
