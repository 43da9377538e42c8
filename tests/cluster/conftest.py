"""A head and a node on this machine, started and stopped by cluster/local.sh."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from manifests import Definition  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
TINY = """\
data: synthetic
synthetic: {users: 120, items: 60, interactions: 20}
backbone: {loss: softmax}
align: {epochs: 2, dim: 16}
invariance: {rounds: 1, environments: 2, environment_steps: 8, mask_steps: 16}
"""  # a config but for stage 3


@dataclass
class Place:
    """A running local cluster. `m3dist` runs the command line in a folder that is not the project's."""

    port: int
    state: Path
    elsewhere: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        given = {"PORT": str(self.port), "STATE": str(self.state), "CPUS": "2", **environment}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": "", **given}  # the library must travel with each job
        command = ["bash", str(ROOT / "cluster/local.sh"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)

    def popen(self, *arguments: str, **environment: str) -> subprocess.Popen:
        env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
        command = [sys.executable, "-m", "m3dist", *arguments]
        return subprocess.Popen(
            command, cwd=self.elsewhere, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def m3dist(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.popen(*arguments, **environment)
        try:
            out, _ = process.communicate(timeout=600)
        finally:
            process.kill()
        return process.returncode, out

    def pids(self) -> set[int]:
        return {int(pid) for pid in self.script("--status").stdout.split()}


def free_ports() -> int:
    """The first of three free ports in a row."""
    for port in range(18300 + os.getpid() % 500, 20000, 5):
        try:
            for each in range(port, port + 3):
                with socket.socket() as taken:
                    taken.bind(("127.0.0.1", each))
        except OSError:
            continue
        return port
    raise RuntimeError("no free ports")


def start(folder: Path, elsewhere: Path, nodes: int = 1, **environment: str) -> Place:
    place = Place(free_ports(), folder / "s", elsewhere)
    started = place.script(str(nodes), **environment)
    assert started.returncode == 0, started.stdout + started.stderr
    return place


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _schemas() -> list[Path]:
    """KubeRay's definition without pod templates, and the whole one where it is at hand."""
    return [Path(__file__).parent / "rayjob-v1.schema.json", ROOT.parent / "shared/kuberay/rayjob-v1.schema.json"]


@pytest.fixture(scope="session", params=_schemas(), ids=["parts", "whole"])
def crd(request) -> Definition:
    """The schema of RayJob from KubeRay's own custom resource definition."""
    if not request.param.exists():
        pytest.skip(f"{request.param} is not here; the parts of it that tests ship with were checked")
    return Definition.of(json.loads(request.param.read_text()), request.param.parent.name == "kuberay")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Place]:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="m3c"))  # short: Ray's sockets must fit 107 bytes
    store = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}  # of a test's S3-like store
    place = start(folder, tmp_path_factory.mktemp("elsewhere"), **store)
    yield place
    before = place.pids()
    stopped = place.script("--stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    deadline = time.monotonic() + 10  # killed ones may need a moment to be gone
    while (left := {pid for pid in before if _runs(pid)}) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"processes outlived local.sh --stop: {[command(pid) for pid in left]}"
