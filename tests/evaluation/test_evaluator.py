"""Which items a ranking for a split leaves out, and what it is held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m3dist.config import Evaluation
from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer
from m3dist.evaluation.evaluator import Evaluator
from m3dist.evaluation.ranking import Mask, Seen, Users

SPLITS = {
    "train": [(0, 0), (0, 1), (1, 1), (2, 2)],
    "val": [(0, 2), (1, 3)],
    "test": [(2, 0), (1, 0)],
}  # item 3 is cold


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    pairs = {name: tuple(np.array(rows, dtype=np.int32).T) for name, rows in SPLITS.items()}
    with Writer(tmp_path / "data") as out:
        out.interactions(3, 4, pairs)
        out.finish()
    return Evaluator(Dataset(tmp_path / "data"), Evaluation(k=(1, 2), metric="ndcg@2"))


def by_id(user_u: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, None]:
    """Smaller ids are better."""
    return torch.tensor([[4.0, 3.0, 2.0, 1.0]]).repeat(len(user_u), 1), None


def test_validation_ranks_what_is_not_in_training(evaluator: Evaluator) -> None:
    """User 0 has 2 first; user 1 has 0 and 2 before 3."""
    got, table = evaluator.evaluate(by_id, "val", keep=True)
    assert table["user"].tolist() == [0, 1]
    assert table["recall@1"].tolist() == [1.0, 0.0]
    assert table["recall@2"].tolist() == [1.0, 0.0]
    assert got["mrr@2"] == 0.5
    assert got["recall@2/cold"] == 0
    assert got["recall@1/cold-only"] == 1
    assert not evaluator.evaluate(by_id, "val")[1]


def test_the_test_split_ranks_what_is_in_no_other(evaluator: Evaluator) -> None:
    """User 1's validation item 3 is gone; both have item 0 first. No cold item is held out."""
    got, table = evaluator.evaluate(by_id, "test", keep=True)
    assert table["user"].tolist() == [1, 2]
    assert got["recall@1"] == 1
    assert not any("/cold" in name for name in got)


def test_held_against_other_items(evaluator: Evaluator) -> None:
    other = Seen.of((np.array([0, 2]), np.array([3, 3])), 3)
    got = evaluator.evaluate(by_id, "val", relevant=other)[0]
    assert got["recall@2"] == 0.5  # user 0 has 2 and 3 left; user 2 has 0, 1 and 3
    assert got["recall@1/cold-only"] == 1


def test_a_recommendation_leaves_out_all_splits(evaluator: Evaluator) -> None:
    everything = [seen.rows(Users.of(np.arange(3), "cpu")) for seen in evaluator.seen(None)]
    left_out = {pair for row, item in everything for pair in zip(row.tolist(), item.tolist(), strict=True)}
    assert left_out == {pair for rows in SPLITS.values() for pair in rows}
    assert len(evaluator.seen("val")) == 1
    assert len(evaluator.seen("test")) == 2
