"""One Ray instance, one planted data set and one finished run for all tests that need one."""

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
# of the S3-like store of `bucket`, for this process and all that it starts
os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray with two CPUs in a temporary folder of its own; gone, with all its processes, after the session."""
    import ray

    from m3dist.distributed import local_ray

    folder = tempfile.mkdtemp(prefix="m3ray")  # short: Ray's sockets must fit 107 bytes
    local_ray.start(num_cpus=2, _temp_dir=folder, logging_level="ERROR")
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def planted_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted data on which taste, not popularity, decides."""
    from m3dist.config import Synthetic
    from m3dist.data import synthetic

    root = tmp_path_factory.mktemp("planted") / "data"
    synthetic.write(root, Synthetic(users=300, items=150, interactions=40), seed=0)
    return root


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run through all stages of M3-InvRL; tests only read it."""
    from small_runs import trained

    out = tmp_path_factory.mktemp("finished")
    trained(out)
    return out


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A URI in an S3-like server of this process, in which NAME stands for a folder's name."""
    from pyarrow import fs

    server = pytest.importorskip("moto.server", reason="moto is not installed; pip install '.[test]'")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, path = fs.FileSystem.from_uri(f"s3://runs{query}")
    filesystem.create_dir(path)
    yield f"s3://runs/NAME{query}"
    running.stop()


@pytest.fixture
def counted() -> Iterator[Any]:
    """What runs on device "standin", which works as long as the test runs (benchmarks/standin.py)."""
    from benchmarks.standin import Standin

    with Standin() as counted:
        yield counted
