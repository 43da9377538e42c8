"""m3dist: a distributed, scalable trainer for M3-InvRL."""

from __future__ import annotations

__version__ = "0.1.0"
