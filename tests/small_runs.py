"""Values of a run that trains in seconds, and what such runs are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m3dist import config as configs
from m3dist import pipeline
from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.evaluation.evaluator import Evaluator
from m3dist.study.runs import by_popularity

SMALL = [
    "synthetic.users=120", "synthetic.items=90", "synthetic.interactions=20", "backbone.dim=8",
    "backbone.content_dim=8", "backbone.negatives=32",
    "backbone.loss=softmax", "align.epochs=2", "align.batch_size=512", "align.dim=16",
    "invariance.rounds=2", "invariance.environments=3", "invariance.batch_size=512", "invariance.negatives=32",
    "merge.masks=learned", "invariance.environment_steps=6", "invariance.mask_steps=12",
    "merge.epochs=2", "merge.batch_size=512", "evaluation.k=[5,10]",
]  # fmt: skip


def small(out: Path, *extra: str) -> Config:
    """A small run with its folder and further values."""
    return configs.load(None, [*SMALL, f"out={out}", *extra])


def trained(out: Path, *extra: str, **options: Any) -> dict[str, Any]:
    """The result of a small run."""
    return pipeline.run(small(out, *extra), quiet=True, **options)


def popularity(dataset: Dataset, config: Config) -> dict[str, float]:
    """Validation metrics of ranking by training interactions."""
    return Evaluator(dataset, config.evaluation).evaluate(by_popularity(dataset), "val")[0]
