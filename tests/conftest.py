"""One Ray instance for all tests that need one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

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
