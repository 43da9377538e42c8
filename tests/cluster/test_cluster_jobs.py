"""Jobs on a head and a node, their results where all nodes reach them: a search, and a run in an S3-like store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from local_places import TINY  # type: ignore[import-not-found]
from pyarrow import fs

from m3dist import config, pipeline
from m3dist.search import driver, space
from m3dist.storage.folders import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SMALL = TINY + "merge: {epochs: 3, evaluate_every: 1, masks: learned}\n"
SEARCH = """\
base: small.yaml
space:
  invariance.gamma: {choice: [0.01, 1]}
  merge.lr: {log_uniform: [0.001, 0.1]}
scheduler: {kind: fifo}
reuse: {lookahead: 1}  # so that what is tried does not depend on how many trials run at once
budget: {trials: 5}
final_seeds: [0, 1]
"""


@pytest.fixture
def project(cluster) -> Path:
    """The folder that commands run in, with a config and a search."""
    (cluster.elsewhere / "small.yaml").write_text(SMALL)
    (cluster.elsewhere / "search.yaml").write_text(SEARCH)
    return cluster.elsewhere


def test_a_submitted_search_equals_one_without_a_cluster(cluster, project, ray_here, tmp_path):
    out = tmp_path / "shared"
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--", "tune", "search.yaml", f"out={out}")
    assert code == 0, log
    for line in ("t0000 finished", "chosen: t000", f"next: m3dist train {out}/best.yaml"):
        assert line in log
    alone = driver.run(space.load(project / "search.yaml", [f"out={tmp_path / 'alone'}"]), quiet=True)
    there = json.loads((out / "summary.json").read_text())
    assert there["trials"] == alone["trials"] == {"finished": 5}
    assert there["best"] == alone["best"]
    assert there["test"] == alone["test"]
    assert len(there["final"]) == 2
    names = ["id", "status", "metric", "value.invariance.gamma", "value.merge.lr"]
    rows, expected = (pq.read_table(folder / "search.parquet", columns=names) for folder in (out, tmp_path / "alone"))
    assert rows.sort_by("id").equals(expected.sort_by("id"))
    assert {path.name for path in (out / "plots").iterdir()} == {"history.png", "importance.png", "parallel.png"}
    trained = [row for row in pq.read_table(out / "search.parquet").to_pylist() if "align" not in row["reused"]]
    assert len(trained) == 1  # five trials on two nodes trained stage 1 once
    code, listed = cluster.m3dist("jobs", "list", "--address", cluster.address)
    assert any("tune" in line and "SUCCEEDED" in line and str(out) in line for line in listed.splitlines()), listed


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """A bucket of an S3-like server; who may write there is in the environment, here as on the nodes."""
    server = pytest.importorskip("moto.server", reason="moto is not installed; pip install '.[test]'")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, path = fs.FileSystem.from_uri(f"s3://runs{query}")
    filesystem.create_dir(path)
    yield f"s3://runs/NAME{query}"
    running.stop()


def test_a_run_folder_in_a_store(cluster, project, bucket, tmp_path):
    out = bucket.replace("NAME", "one")
    arguments = ("train", "small.yaml", f"out={out}", "workers=2")
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--", *arguments)
    assert code == 0, log
    alone = pipeline.run(config.load(project / "small.yaml", [f"out={tmp_path}"]), quiet=True)
    there = Folder(out)
    assert there.read_json("result.json")["test"] == pytest.approx(alone["test"], abs=1e-3)
    assert any("events" in name for name in (there / "tb").names())
    assert not (project / "s3:").exists()
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--", *arguments)
    assert code == 0, log
    assert "align 0" not in log  # nothing was trained again


def test_a_tracker_hears_of_a_job(cluster, project, tmp_path, monkeypatch):
    """Its address comes by cluster.env, and what workers log goes to it from the job's own process."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"file://{tmp_path}/mlflow"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    words = ("train", "small.yaml", f"out={tmp_path}/run", "workers=2", "report_to=[mlflow]")
    told = f"cluster.env={{MLFLOW_TRACKING_URI: '{uri}', MLFLOW_ALLOW_FILE_STORE: 'true'}}"
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--", *words, told)
    assert code == 0, log
    tracker = mlflow.MlflowClient(uri)
    (found,) = tracker.search_runs(["0"])
    assert [point.step for point in tracker.get_metric_history(found.info.run_id, "merge/loss")] == [0, 1, 2]
