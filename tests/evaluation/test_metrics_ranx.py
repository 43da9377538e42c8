"""Ranking metrics against an independent library on random data."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from m3dist.distributed.engine import Engine
from m3dist.evaluation import metrics, ranking
from m3dist.evaluation.metrics import Judged

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # compiling takes minutes, and 60 users take none
ranx = pytest.importorskip("ranx")


def test_metrics_equal_ranx() -> None:
    rng = np.random.default_rng(0)
    users, items, k = 60, 200, 20
    score = torch.from_numpy(rng.permutation(users * items).reshape(users, items)).float()
    held = rng.random((users, items)) < 0.05
    seen = (rng.random((users, items)) < 0.1) & ~held
    held[0] = False
    masked, relevant = (
        ranking.Seen.of(tuple(x.astype(np.int32) for x in np.nonzero(matrix)), users) for matrix in (seen, held)
    )
    lists = ranking.Ranking(lambda u, mask: (score[u].clone(), None), [masked], items, k, 16)
    judged = Judged(relevant, (5, k))
    total, table = metrics.evaluate(lists, np.arange(users), judged, keep=True)
    qrels = {f"u{u}": {f"i{i}": 1 for i in np.flatnonzero(held[u])} for u in range(users) if held[u].any()}
    run = {
        f"u{u}": {f"i{i}": float(score[u, i]) for i in np.flatnonzero(~seen[u])} for u in range(users) if held[u].any()
    }
    theirs = {"precision": "precision", "recall": "recall", "ndcg": "ndcg", "hit": "hit_rate", "mrr": "mrr"}
    names = {f"{ours}@{at}": f"{name}@{at}" for ours, name in theirs.items() for at in (5, k)}
    got = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(names.values()))
    assert total.users == len(qrels) == len(table["user"])
    means = total.means(Engine(), None)
    for ours, name in names.items():
        assert means[ours] == pytest.approx(got[name], abs=1e-9), ours
