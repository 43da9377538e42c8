"""A finished run by the URI of its folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from test_train import call

from m3dist.storage.folders import Folder

SMALL = [
    "model=ultragcn", "synthetic.users=60", "synthetic.items=50", "synthetic.interactions=10", "backbone.dim=8",
    "backbone.content_dim=8", "backbone.negatives=8", "merge.epochs=1", "evaluation.k=[5,10]",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert call("train", *SMALL, f"out={out}") == 0
    return out


def test_by_a_file_uri(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", str(run)) == 0
    local = capsys.readouterr().out
    assert call("evaluate", f"file://{run}") == 0
    assert capsys.readouterr().out == local
    assert call("recommend", f"file://{run}", "--k", "3", "--out", f"file://{tmp_path}/top.parquet") == 0
    assert pq.read_table(tmp_path / "top.parquet").num_rows == 180
    assert call("recommend", str(run), "--out", str(tmp_path / "none/top.parquet")) == 2
    assert call("recommend", str(run), "--out", "nowhere://top.parquet") == 2
    assert call("evaluate", f"file://{tmp_path}") == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert f"file://{tmp_path}: not a finished run" in said


def test_in_a_store(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = pytest.importorskip("moto.server", reason="moto is not installed; pip install '.[test]'")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        _, port = running.get_host_and_port()
        query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        filesystem, path = fs.FileSystem.from_uri(f"s3://key:secret@runs{query}")
        filesystem.create_dir(path)
        there = f"s3://key:secret@runs/one{query}"
        Folder(there).upload(run)
        assert call("evaluate", there) == 0
        top = f"s3://key:secret@runs/lists/top.parquet{query}"
        assert call("recommend", there, "--k", "3", "--out", top) == 0
        with Folder(f"s3://key:secret@runs/lists{query}").local("top.parquet") as copy:
            assert pq.read_table(copy).num_rows == 180
        assert call("evaluate", f"s3://key:secret@runs/none{query}") == 2
        assert "not a finished run" in capsys.readouterr().err
    finally:
        running.stop()
