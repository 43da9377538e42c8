"""Two Ray nodes on one machine: the numbers of one process, whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fault_helpers import LONG, mid_epoch, same, start, until

from m3dist import config as configs
from m3dist import pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).parents[2] / "cluster" / "local.sh"


def free_port() -> int:
    """A port with two free ones after it, as far as one can tell."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster() -> Iterator[tuple[Path, str]]:
    """A head and a node of one CPU each; yields the folder of their pids and the address of the job API."""
    root = Path(tempfile.mkdtemp(prefix="m3n"))  # short: Ray's sockets must fit 107 bytes
    state, port = root / "s", free_port()
    env = {**os.environ, "STATE": str(state), "PORT": str(port), "CPUS": "1"}
    subprocess.run(["bash", SCRIPT, "1"], env=env, check=True, timeout=240, capture_output=True)
    yield state, f"http://127.0.0.1:{port}"
    subprocess.run(["bash", SCRIPT, "--stop"], env=env, check=True, timeout=120, capture_output=True)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    pipeline.run(configs.load(None, [*LONG, f"out={out}"]), quiet=True)
    return out


def train_workers(state: Path) -> dict[str, list[psutil.Process]]:
    """Ray Train workers under each node's recorded process."""
    found: dict[str, list[psutil.Process]] = {}
    for path in state.glob("*.pid"):
        for child in psutil.Process(int(path.read_text())).children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.setdefault(path.stem, []).append(child)
            except psutil.Error:
                continue
    return found


def test_workers_on_two_nodes(cluster: tuple[Path, str], tmp_path: Path, undisturbed: Path) -> None:
    state, address = cluster
    out = tmp_path / "run"
    process = start(out, "workers=2", address=address)
    until(mid_epoch(out, "align"), 200, process)
    workers = train_workers(state)
    assert set(workers) == {"head", "node1"}
    workers["node1"][0].kill()
    assert process.wait(300) == 0, process.communicate()[1]
    same(out, undisturbed, exact=False)


def test_a_killed_node_leaves_an_elastic_run(cluster: tuple[Path, str], tmp_path: Path, undisturbed: Path) -> None:
    state, address = cluster
    out = tmp_path / "run"
    process = start(out, "workers=[1,2]", address=address)
    until(mid_epoch(out, "align"), 200, process)
    node = psutil.Process(int((state / "node1.pid").read_text()))
    for child in [*node.children(recursive=True), node]:
        child.kill()
    assert process.wait(400) == 0, process.communicate()[1]
    same(out, undisturbed, exact=False)
    assert json.loads((out / "result.json").read_text())["stages"]["merge"]
