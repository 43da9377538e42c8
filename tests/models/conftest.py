from __future__ import annotations

from pathlib import Path

import pytest

from m3dist.config import Synthetic
from m3dist.data import synthetic


@pytest.fixture(scope="session")
def planted_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted data on which taste, not popularity, decides."""
    root = tmp_path_factory.mktemp("planted") / "data"
    synthetic.write(root, Synthetic(users=300, items=150, interactions=40), seed=0)
    return root
