"""Finished stages on disk and in a store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m3dist.storage.artifacts import Output, Store
from m3dist.storage.folders import Folder


def test_an_artifact_is_there_when_complete(folder: Folder) -> None:
    store = Store(folder)
    folder.write_tensors("align-k/tensors.safetensors", {"x": torch.ones(1)})  # cut off before its meta.json
    assert not store.has("align", "k")
    store.save("align", "k", Output({"x": torch.zeros(2)}, {"epoch": 1}))
    tensors, meta = store.load("align", "k")
    assert (tensors["x"].tolist(), meta) == ([0, 0], {"epoch": 1})


def test_damaged_artifacts_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("align", "k", Output({"x": torch.zeros(2)}, {}))
    (tmp_path / "align-k" / "tensors.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"align-k: damaged artifact"):
        store.load("align", "k")
