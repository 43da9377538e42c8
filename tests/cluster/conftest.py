"""A head and a node on this machine, started and stopped by cluster/local.sh."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_places import ROOT, Place, command, runs, start  # type: ignore[import-not-found]
from manifests import Definition  # type: ignore[import-not-found]


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
    while (left := {pid for pid in before if runs(pid)}) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"processes outlived local.sh --stop: {[command(pid) for pid in left]}"
