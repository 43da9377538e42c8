"""Small searches, and how tests write and run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from m3dist.cli.main import main
from m3dist.search import space

BASE: dict[str, Any] = {
    "synthetic": {"users": 90, "items": 70, "interactions": 16},
    "backbone": {"dim": 8, "content_dim": 8, "negatives": 16},
    "align": {"epochs": 4, "batch_size": 512, "dim": 16, "evaluate_every": 1, "patience": 0},
    "invariance": {
        "rounds": 1, "environments": 2, "batch_size": 512, "negatives": 16, "environment_epochs": 1, "mask_epochs": 1,
    },
    "merge": {"epochs": 4, "batch_size": 512, "evaluate_every": 1, "patience": 0},
    "evaluation": {"k": [5, 10]},
}  # fmt: skip
SPACE: dict[str, Any] = {
    "align.lr": {"log_uniform": [1e-3, 1e-1]},
    "invariance.gamma": {"choice": [0.01, 0.1, 1.0]},
    "merge.lr": {"log_uniform": [1e-3, 1e-1]},
}
LATE = {name: SPACE[name] for name in ("invariance.gamma", "merge.lr")}


def write(folder: Path, **search: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"base": BASE, "space": SPACE, "budget": {"trials": 4}, "final_seeds": [0], "out": str(folder / "s")}
    path = folder / "search.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(given | search)))
    return path


def plan_of(folder: Path, **search: Any) -> space.Plan:
    return space.load(write(folder, **search))


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def small_synthetic() -> list[str]:
    return ["synthetic.users=60", "synthetic.items=50", "synthetic.interactions=12"]
