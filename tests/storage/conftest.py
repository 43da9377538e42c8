"""A folder on the local disk and one in an S3-like store."""

from __future__ import annotations

from pathlib import Path

import pytest

from m3dist.storage.folders import Folder


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(tmp_path)
    return Folder(request.getfixturevalue("bucket").replace("NAME", f"files-{tmp_path.name}"))
