"""m3dist: a distributed, scalable trainer for M3-InvRL.

    import m3dist

    data = m3dist.Dataset.open("data/mine")
    run = m3dist.train(data, m3dist.Config(out="runs/mine", merge={"epochs": 10}))
    run.recommend(["alice", "bob"], k=10)

Names are imported when they are first used, so that `import m3dist` itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from m3dist.api import load, train
    from m3dist.config import Config
    from m3dist.data.dataset import Dataset
    from m3dist.data.importers.options import Options
    from m3dist.method.registry import recommender
    from m3dist.models.base import Recommender
    from m3dist.serving.notebook import show
    from m3dist.serving.rules import Rules
    from m3dist.serving.run import Run
    from m3dist.training.callbacks import Callback, Stopped

__all__ = [
    "Callback", "Config", "Dataset", "Options", "Recommender", "Rules", "Run", "Stopped", "load", "recommender",
    "show", "train",
]  # fmt: skip

_HOMES = {
    "Callback": "m3dist.training.callbacks",
    "Config": "m3dist.config",
    "Dataset": "m3dist.data.dataset",
    "Options": "m3dist.data.importers.options",
    "Recommender": "m3dist.models.base",
    "Rules": "m3dist.serving.rules",
    "Run": "m3dist.serving.run",
    "Stopped": "m3dist.training.callbacks",
    "load": "m3dist.api",
    "recommender": "m3dist.method.registry",
    "show": "m3dist.serving.notebook",
    "train": "m3dist.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'm3dist' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
