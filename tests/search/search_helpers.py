"""Small searches, how tests write and run them, and what is known of their trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from m3dist.cli.main import main
from m3dist.search import space

BASE: dict[str, Any] = {
    "synthetic": {"users": 90, "items": 70, "interactions": 16},
    "backbone": {"loss": "softmax", "dim": 8, "content_dim": 8, "negatives": 16},
    "align": {"epochs": 4, "batch_size": 512, "dim": 16, "evaluate_every": 1, "patience": 0},
    "invariance": {
        "rounds": 1, "environments": 2, "batch_size": 512, "negatives": 16, "environment_steps": 3, "mask_steps": 6,
    },
    "merge": {"epochs": 4, "batch_size": 512, "evaluate_every": 1, "patience": 0, "masks": "learned"},
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


def events(out: Path) -> list[dict[str, Any]]:
    """What a search wrote down so far; whole lines only, as the last one may be under way."""
    log = out / "trials.jsonl"
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def finished(out: Path) -> set[str]:
    return {e["trial"] for e in events(out) if e["event"] == "ended" and e["status"] == "finished"}


def steps(told: list[dict[str, Any]], stage: str = "merge") -> dict[str, int]:
    """The last step of a stage that each trial told of and that has not ended."""
    ended = {e["trial"] for e in told if e["event"] == "ended"}
    results = [e for e in told if e["event"] == "result" and e["stage"] == stage]
    return {e["trial"]: e["step"] for e in results if e["trial"] not in ended}


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def small_synthetic() -> list[str]:
    return ["synthetic.users=60", "synthetic.items=50", "synthetic.interactions=12"]
