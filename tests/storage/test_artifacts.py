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


@pytest.mark.parametrize("rows", [{}, {"0.user": torch.rand(5, 3)}])
def test_what_is_kept_of_interactions_is_read_by_itself(folder: Folder, rows: dict[str, torch.Tensor]) -> None:
    series = {
        "environment.0": torch.arange(300, dtype=torch.int16),
        "environment.1": torch.zeros(300, dtype=torch.int8),
    }
    store = Store(folder)
    store.save("invariance", "k", Output({"mask.0": torch.ones(2)}, {"rounds": []}, rows, series))
    tensors, meta = store.load("invariance", "k")
    assert tensors.keys() == {"mask.0", *rows}
    assert meta == {"rounds": []}
    found = store.interactions("invariance", "k")
    assert found.keys() == series.keys()
    for name, want in series.items():
        assert found[name].dtype == want.dtype
        assert torch.equal(found[name], want)
    for name in (folder / "invariance-k").names():
        if name.startswith("rows"):
            (folder / "invariance-k").remove(name)
    with pytest.raises(ValueError, match=r"invariance-k: damaged artifact .* delete the folder and train again"):
        store.interactions("invariance", "k")
    store.save("align", "k", Output({"x": torch.zeros(2)}, {}))
    assert store.interactions("align", "k") == {}


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
