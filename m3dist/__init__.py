"""m3dist: a distributed, scalable trainer for M3-InvRL."""

from __future__ import annotations

__version__ = "0.1.0"


def load(run: str):  # type: ignore[no-untyped-def]
    """Open a finished run folder: `m3dist.load(run).recommend(user_ids, k)`."""
    from m3dist.serving.run import Run

    return Run(run)
