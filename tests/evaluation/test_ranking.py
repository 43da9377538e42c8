"""Exact lists and metrics by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from m3dist.evaluation import ranking
from m3dist.evaluation.ranking import Judged, Ranking, Seen


@pytest.mark.parametrize(("items", "k"), [(5, 10), (40, 3), (1003, 10), (1003, 40)])
def test_top_k_with_ties_by_id(items: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(-3, 3, (50, items), generator=generator).float()
    score[:, ::7] = float("-inf")
    item, value = ranking.top_k(score, k)
    for row in range(50):
        want = sorted(range(items), key=lambda i: (-float(score[row, i]), i))[:k]
        assert item[row].tolist() == want
        assert value[row].tolist() == [float(score[row, i]) for i in want]


def test_metrics_by_hand() -> None:
    hit = torch.tensor([[True, False, True, False]])
    got = {k: float(v) for k, v in ranking.per_user(hit, torch.tensor([3]), (2, 4)).items()}
    third = 1 / math.log2(4)
    assert got["precision@4"] == pytest.approx(0.5)
    assert got["recall@2"] == pytest.approx(1 / 3)
    assert got["mrr@4"] == 1.0
    assert got["ndcg@4"] == pytest.approx((1 + third) / (1 + 1 / math.log2(3) + third))
    assert got["ndcg_hits@4"] == pytest.approx((1 + third) / (1 + 1 / math.log2(3)))


def test_evaluate_masks_seen_and_adds_up_over_users() -> None:
    score = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    seen = Seen.of((np.array([0]), np.array([0])), 3)
    relevant = Seen.of((np.array([0, 1]), np.array([1, 0])), 3)

    def run(users: list[int]) -> ranking.Metrics:
        lists = Ranking(lambda u: (score[u].clone(), None), [seen], 1, 2)
        return ranking.evaluate(lists, torch.tensor(users), Judged(relevant, 3, (1,)))[0]

    whole, parts = run([0, 1, 2]), [run([0]), run([1, 2])]
    assert whole.users == 2
    assert whole.means()["precision@1"] == 0.5
    assert sum(p.sums["ndcg@1"] for p in parts) == whole.sums["ndcg@1"]


def test_cold_metrics_count_cold_items_alone_in_the_same_ranking() -> None:
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).repeat(3, 1)
    held = [(0, 1), (0, 2), (1, 0), (2, 3)]  # user 1 holds no cold item, user 2 one that is not listed
    pair = tuple(np.array(x) for x in zip(*held, strict=True))
    relevant = Seen.of(pair, 3)
    cold = torch.tensor([False, False, True, True])
    assert relevant.only(cold).item.tolist() == [2, 3]
    assert relevant.only(cold).bounds.tolist() == [0, 1, 1, 2]

    def run(users: list[int]) -> ranking.Metrics:
        lists = Ranking(lambda u: (score[u].clone(), None), [], 3, 2)
        return ranking.evaluate(lists, torch.tensor(users), Judged(relevant, 4, (3,), cold))[0]

    got = run([0, 1, 2]).means()
    assert got["recall@3/cold"] == pytest.approx(1 / 2)
    assert got["mrr@3/cold"] == pytest.approx((1 / 3) / 2)
    assert got["ndcg@3/cold"] == pytest.approx((1 / 2) / 2)  # third place, ideal first
    assert got["coverage@3/cold"] == 0.5
    assert got["recall@3"] == pytest.approx(2 / 3)
    assert not any(name.endswith("/cold") for name in run([1]).means())
