"""What distributed tests share; nothing of it outlives the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parallel_helpers import RUNS, STEPS, disband, planted, small, trajectories


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    disband()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small planted data."""
    return planted(tmp_path_factory.mktemp("planted") / "data", small())


@pytest.fixture(scope="session")
def alone(root: Path) -> list[dict[str, Any]]:
    """The first steps of RUNS by one process."""
    return trajectories(0, 1, RUNS, root, STEPS)
