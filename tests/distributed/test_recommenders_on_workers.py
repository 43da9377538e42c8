"""Two workers train a recommender as one does, under DDP and ZeRO."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parallel_helpers import engine_of, small, spawn

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.method.recommender import BaselineTask
from m3dist.training.context import Context

COMMON = ("baseline.dim=8", "baseline.lr=3e-3", "baseline.batch_size=301", "baseline.negatives=24")
NAMES = ("vbpr", "cb2cf", "disengcn", "macridvae", "huign", "grcn")


def train(rank: int, world: int, configs: list[Config], root: Path) -> list[dict[str, Any]]:
    """Losses, metrics and the scores' tensors of a few epochs of every config."""
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks for it
    out = []
    for config in configs:
        engine = engine_of(config, rank, world)
        task = BaselineTask(Context(Dataset(root), config, engine))
        losses = []
        for epoch in range(4):
            task.draws.seek(epoch, 0)
            for _ in range(task.draws.steps):
                losses.append(engine.totals({name: float(x) for name, x in task.step().items()}))
                task.draws.advance()
        out.append({"losses": losses, "metrics": task.evaluate(), "tensors": task.tensors()})
    return out


def agree(results: list[list[dict[str, Any]]], alone: list[dict[str, Any]]) -> None:
    for at, single in enumerate(alone):
        ours, other = results[0][at], results[1][at]
        for name in single["losses"][0]:
            mine, theirs = ([step[name] for step in run["losses"]] for run in (ours, single))
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6, err_msg=name)
        assert ours["metrics"] == pytest.approx(single["metrics"], abs=1e-6)
        assert other["metrics"] == ours["metrics"]
        assert all(torch.equal(other["tensors"][name], x) for name, x in ours["tensors"].items())


def test_ddp(root: Path) -> None:
    configs = [small(f"model={name}", *COMMON) for name in NAMES]
    agree(spawn(2, train, configs, root), train(0, 1, configs, root))


@pytest.mark.parametrize("name", ["vbpr", *(pytest.param(x, marks=pytest.mark.slow) for x in NAMES[1:])])
def test_zero_3(name: str, root: Path) -> None:
    values = [f"model={name}", *COMMON]
    sharded = small(*values, "strategy=deepspeed", "zero_stage=3")
    agree(spawn(2, train, [sharded], root), train(0, 1, [small(*values)], root))
