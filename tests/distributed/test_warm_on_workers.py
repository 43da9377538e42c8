"""Every worker folds its own new users in, and all have the rows that one worker alone starts with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_helpers import engine_of, small, spawn, whole

import m3dist
from m3dist import pipeline
from m3dist.config import Config
from m3dist.data import synthetic
from m3dist.data.dataset import SPLITS, Dataset
from m3dist.method import warm
from m3dist.method.content import Contents
from m3dist.method.merge import MergeTask
from m3dist.run_folder import earlier
from m3dist.training.context import Context


def without(root: Path, left_out: np.ndarray) -> Path:
    """Planted data without some users, bool [U]; text ids."""
    synthetic.write(root / "planted", small().synthetic, 0)
    planted = Dataset(root / "planted")
    rows = []
    for split in SPLITS:
        user, item = planted.interactions(split)
        rows += [(f"u{u}", f"i{i}", split) for u, i in zip(user[~left_out[user]], item[~left_out[user]], strict=True)]
    named = dict(zip(("user", "item", "split"), map(list, zip(*rows, strict=True)), strict=True))
    features = {name: np.array(planted.features(name)) for name in planted.modalities}
    ids = [f"i{i}" for i in range(planted.n_items)]
    Dataset.from_arrays(named, features, root / "data", m3dist.Options.of(split_column="split"), ids)
    return root / "data"


def carried(rank: int, world: int, config: Config) -> dict[str, torch.Tensor]:
    """Stage 3 before its first step."""
    engine = engine_of(config, rank, world)
    context = Context(Dataset(config.data), config, engine)
    context.before = earlier(config, engine)
    task = MergeTask(context, Contents.beside([context.data.all_features]))
    warm.carry(context, task)
    return whole(task, engine)


@pytest.mark.parametrize("embeddings", ["replicated", "sharded"])
def test_new_users_have_the_rows_of_one_worker(embeddings: str, tmp_path: Path) -> None:
    left_out = np.zeros(97, dtype=bool)
    left_out[[3, 20, 21, 60, 96]] = True  # on both workers
    earlier_data, later = without(tmp_path / "a", left_out), without(tmp_path / "b", np.zeros(97, dtype=bool))
    given = ["model=ultragcn", "merge.epochs=2", f"out={tmp_path / 'run'}", f"data={earlier_data}"]
    pipeline.run(small(*given), quiet=True)
    values = ["model=ultragcn", f"data={later}", f"out={tmp_path / 'next'}", f"warm_from={tmp_path / 'run'}"]
    alone = carried(0, 1, small(*values))
    fresh = whole(
        MergeTask(context := Context(Dataset(later), small(*values)), Contents.beside([context.data.all_features])),
        context.engine,
    )
    assert len(Dataset(later).user_ids) == len(Dataset(earlier_data).user_ids) + 5
    assert (alone["user"] != fresh["user"]).any(2).all()
    for many in spawn(2, carried, small(*values, f"embeddings={embeddings}")):
        assert many.keys() == alone.keys()
        for name, x in alone.items():
            torch.testing.assert_close(many[name], x, rtol=0, atol=2e-5, msg=name)  # rows have length 1
