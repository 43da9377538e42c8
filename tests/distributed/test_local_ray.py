"""A Ray of a command's own starts while the command loads torch, and ends with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from parallel_helpers import small

from m3dist.distributed import ray_train as launch
from m3dist.training.tracking import Tracker

AHEAD = """
import json, os, sys, time
from m3dist.distributed import local_ray

local_ray.start_ahead()
assert "torch" not in sys.modules
from m3dist.distributed import placement
placement.connect()
import ray
time.sleep(1)  # the thread that has started it has nothing more to do
ran = ray.get(ray.remote(num_cpus=0)(lambda: os.getpid()).remote(), timeout=60)
print(json.dumps([ran, os.getpid(), local_ray.has_dashboard(), ray.nodes()[0]["RayletSocketName"]]))
"""


@pytest.mark.timeout(180)
def test_ray_starts_beside_imports_and_ends_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = subprocess.run([sys.executable, "-c", AHEAD], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    task, driver, dashboard, socket = json.loads(done.stdout)
    assert task != driver
    assert not dashboard
    assert "WARNING" not in done.stderr
    assert not [p for p in psutil.process_iter(["cmdline"]) if socket in (p.info["cmdline"] or [])]
    assert not psutil.pid_exists(task)


@pytest.mark.timeout(240)
def test_a_run_starts_no_processes_that_it_does_not_use(ray_here: None, tmp_path: Path) -> None:
    from ray._private.state import actors  # the public list asks a dashboard

    before = set(actors())

    def work(engine: Any, tracker: Any) -> None:
        if engine.rank == 0:
            new = [each for name, each in actors().items() if name not in before and each["State"] == "ALIVE"]
            (tmp_path / "new.json").write_text(json.dumps(sorted(each["ActorClassName"] for each in new)))

    launch.run(launch.Task(work, "who"), small("workers=1", f"out={tmp_path}"), Tracker(None))
    new = json.loads((tmp_path / "new.json").read_text())
    assert new == ["RayTrainWorker", "Relay", "SynchronizationActor", "TrainController"]
