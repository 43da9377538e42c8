"""What tests of several packages need: one Ray instance, and a stand-in for a GPU."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks/ is not installed; it is found behind whatever is

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray with two CPUs in a temporary folder of its own; gone, with all its processes, after the session."""
    import ray

    folder = tempfile.mkdtemp(prefix="m3ray")  # short: Ray's sockets must fit 107 bytes
    ray.init(address="local", num_cpus=2, _temp_dir=folder, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def counted() -> Iterator[Any]:
    """What runs on device "standin", which works as long as the test runs (benchmarks/standin.py)."""
    from benchmarks.standin import Standin

    with Standin() as counted:
        yield counted
