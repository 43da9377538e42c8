"""A finished run, opened from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import trained

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
    for unknown in (9999, "alice"):
        with pytest.raises(ValueError, match=f"user {unknown!r} is not in .*, whose users are such as 0"):
            opened.recommend([7, unknown], 3)


def test_embeddings_and_weights_are_scores(finished_run: Path) -> None:
    run = m3dist.load(str(finished_run), "cpu")
    users, items = run.embeddings()
    names = list(run.dataset.modalities)
    assert users.column_names == items.column_names == ["id", *(f"vector_{name}" for name in names)]
    assert users["id"].to_pylist() == run.dataset.user_ids.to_pylist()
    assert items["id"].to_pylist() == run.dataset.item_ids.to_pylist()
    product = {
        name: np.stack(users[f"vector_{name}"].to_numpy()) @ np.stack(items[f"vector_{name}"].to_numpy()).T
        for name in names
    }
    rows = run.recommend([5, 9], k=90, rules=m3dist.Rules(include_seen=True)).to_pylist()
    assert len(rows) == 2 * 90
    found = [sum(row[f"weight_{name}"] * product[name][row["user"], row["item"]] for name in names) for row in rows]
    assert found == pytest.approx([row["score"] for row in rows], abs=1e-5)


@pytest.mark.parametrize("model", ["ultragcn", "vbpr"])
def test_embeddings_of_a_model_without_fusion(model: str, tmp_path: Path) -> None:
    trained(tmp_path, f"model={model}", "baseline.epochs=1")
    run = m3dist.load(str(tmp_path), "cpu")
    users, items = run.embeddings()
    assert users.column_names == items.column_names == ["id", "vector_model"]
    score_UI = np.stack(users["vector_model"].to_numpy()) @ np.stack(items["vector_model"].to_numpy()).T
    for row in run.recommend(k=5).to_pylist():
        assert score_UI[row["user"], row["item"]] == pytest.approx(row["score"], abs=1e-5)
