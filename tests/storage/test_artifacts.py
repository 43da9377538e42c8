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
    assert store.has("align", "k")
    assert store.meta("align", "k") == {"epoch": 1}


def test_rows_of_tables_are_read_whole(folder: Folder) -> None:
    rows = {"0.user": torch.rand(5, 3), "1.user": torch.rand(4, 2)}
    Store(folder).save("merge", "k", Output({"x": torch.zeros(2)}, {"epoch": 1}, rows))
    tensors, meta = Store(folder).load("merge", "k")
    assert meta == {"epoch": 1}
    assert tensors.keys() == {"x", *rows}
    for name, want in rows.items():
        assert torch.equal(tensors[name], want)


@pytest.mark.parametrize("pattern", ["tensors*", "rows*", "meta*"])
@pytest.mark.parametrize("content", [b"no", None])
def test_damaged_artifacts_are_named(tmp_path: Path, pattern: str, content: bytes | None) -> None:
    store = Store(tmp_path)
    store.save("align", "k", Output({"x": torch.zeros(2)}, {}, {"rows": torch.rand(5, 3)}))
    (path,) = (tmp_path / "align-k").glob(pattern)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"align-k: damaged artifact .* delete the folder and train again"):
        store.load("align", "k")
