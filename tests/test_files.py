"""Run folders on the local disk and in an S3-like store: whole files, runs, checkpoints, prepared data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pyarrow import fs

from m3dist import config as configs
from m3dist import pipeline
from m3dist.config import Checkpoint
from m3dist.distributed.engine import Engine
from m3dist.storage.artifacts import Store
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder
from m3dist.training.tracking import Stopped, Tracker

SMALL = [
    "synthetic.users=60", "synthetic.items=60", "synthetic.interactions=20", "backbone.dim=8",
    "backbone.content_dim=8", "backbone.negatives=16", "align.epochs=2", "align.evaluate_every=1",
    "invariance.rounds=1", "invariance.environments=2", "merge.epochs=3", "merge.evaluate_every=1",
    "evaluation.k=[5,10]",
]  # fmt: skip


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3-like server in this process."""
    server = pytest.importorskip("moto.server", reason="moto is not installed; pip install '.[test]'")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, path = fs.FileSystem.from_uri(f"s3://key:secret@runs{query}")
    filesystem.create_dir(path)
    yield f"s3://key:secret@runs/NAME{query}"
    running.stop()


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(tmp_path)
    return Folder(request.getfixturevalue("bucket").replace("NAME", f"files-{tmp_path.name}"))


def test_files_come_back(folder: Folder) -> None:
    assert folder.names() == []
    folder.write_json("a/b.json", {"x": 1})
    folder.write_tensors("t.safetensors", {"w": torch.arange(3.0)})
    assert (folder / "a").read_json("b.json") == {"x": 1}
    assert folder.read_tensors("t.safetensors")["w"].tolist() == [0, 1, 2]
    assert folder.names() == ["a", "t.safetensors"]
    folder.remove("a")
    folder.remove("nothing")
    assert not folder.exists("a/b.json")


def test_a_failed_write_leaves_what_was_there(folder: Folder) -> None:
    def write() -> None:
        with folder.writing("x") as path:
            path.write_text("half")
            raise RuntimeError

    folder.write_text("x", "old")
    with pytest.raises(RuntimeError):
        write()
    assert folder.read_text("x") == "old"
    assert folder.names() == ["x"]


def test_unknown_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ftp://x.*expected a path or a URI like s3"):
        Folder("ftp://x/y")


def test_an_artifact_is_there_when_complete(folder: Folder) -> None:
    store = Store(folder)
    folder.write_tensors("align-k/tensors.safetensors", {"x": torch.ones(1)})  # cut off before its meta.json
    assert not store.has("align", "k")
    store.save("align", "k", {"x": torch.zeros(2)}, {"epoch": 1})
    tensors, meta = store.load("align", "k")
    assert (tensors["x"].tolist(), meta) == ([0, 0], {"epoch": 1})


def test_damaged_artifacts_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("align", "k", {"x": torch.zeros(2)}, {})
    (tmp_path / "align-k" / "tensors.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"align-k: damaged artifact"):
        store.load("align", "k")


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


def test_a_run_in_a_store_stops_goes_on_and_equals_a_local_one(bucket: str, tmp_path: Path) -> None:
    out = bucket.replace("NAME", "one")

    def stop(stage: str, step: int, values: dict[str, float]) -> None:
        if (stage, step) == ("merge", 1):
            raise Stopped

    local = pipeline.run(configs.load(None, [*SMALL, f"out={tmp_path}"]), quiet=True)
    remote = configs.load(None, SMALL).model_copy(update={"out": out})
    with pytest.raises(Stopped):
        pipeline.run(remote, quiet=True, listener=stop)
    assert Folder(out).exists("checkpoints")
    again = pipeline.run(remote, quiet=True)
    assert again["test"] == local["test"]
    lines = [json.loads(line) for line in Folder(out).read_text("metrics.jsonl").splitlines()]
    assert [x["step"] for x in lines if x["stage"] == "merge"] == [0, 1, 2]
    assert any("events" in name for name in (Folder(out) / "tb").names())


def test_data_that_was_prepared_again_is_fetched_again(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Folder(bucket.replace("NAME", "mine"))
    folder.write_text("dataset.json", "1")
    first = folder.here()
    assert (first.name, folder.here()) == ("mine", first)
    folder.write_text("dataset.json", "2")
    assert folder.here() != first
    assert (folder.here() / "dataset.json").read_text() == "2"


def test_tensorboard_reads_while_the_run_goes_on(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Tracker(tmp_path, quiet=True) as tracker:
        for step, loss in enumerate((2.0, 1.0, 0.5)):
            tracker.log("align", step, {"loss": loss})
            time.sleep(0.1)  # the writer is a thread
        board = events.EventAccumulator(str(tmp_path / "tb")).Reload()
        assert [event.value for event in board.Scalars("align/loss")] == [2.0, 1.0, 0.5]
