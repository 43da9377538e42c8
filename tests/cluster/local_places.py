"""A cluster on this machine under cluster/local.sh, as tests drive it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


def runs(pid: int) -> bool:
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


def wait(true: Callable[[], object], seconds: float) -> None:
    """Until it is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.3)


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(words[1]), []).append(int(stat.parent.name))
    out = [pid]
    for each in out:
        out += children.get(each, [])
    return out
