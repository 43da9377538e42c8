"""A finished run, opened from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import m3dist
from m3dist.evaluation.ranking import Mask, Users


def test_recommend(finished_run: Path) -> None:
    opened = m3dist.load(str(finished_run))
    table = opened.recommend(k=3)
    assert table.num_rows == 120 * 3
    row = table.to_pylist()[0]
    assert sum(row[f"weight_modality{m}"] for m in range(3)) == pytest.approx(1, rel=1e-5)
    top = opened.recommend([7], 3).to_pylist()
    assert [(row["user"], row["rank"]) for row in top] == [(7, 1), (7, 2), (7, 3)]
    users = Users.of(np.array([7]), "cpu")
    score_I = opened.score(users.there_u, Mask(opened.evaluator.seen(None), users, 90))[0][0].clone()
    for split in ("train", "val", "test"):
        user, item = opened.dataset.interactions(split)
        score_I[item[user == 7].astype(int)] = float("-inf")
    assert [row["item"] for row in top] == torch.topk(score_I, 3).indices.tolist()
    assert [row["score"] for row in top] == pytest.approx(torch.topk(score_I, 3).values.tolist())
    with pytest.raises(ValueError, match="user 9999"):
        opened.recommend([9999], 3)
