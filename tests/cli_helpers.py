"""The command line in this process."""

from __future__ import annotations

import pytest

from m3dist.cli.main import main


def call(*arguments: object) -> int:
    """The exit code of `m3dist ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        main([str(x) for x in arguments])
    return int(stop.value.code or 0)
