"""Ranking metrics by hand, and how they add up over users, blocks and workers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.standin import Counted
from m3dist.distributed.engine import Engine
from m3dist.evaluation.metrics import Judged, Metrics, evaluate, per_user
from m3dist.evaluation.ranking import Mask, Ranking, Seen

SECOND, THIRD = 1 / math.log2(3), 1 / math.log2(4)  # discounts of ranks


def seen_of(pairs: list[tuple[int, int]], n_users: int, device: str = "cpu") -> Seen:
    user, item = (np.array(x, dtype=np.int64) for x in (zip(*pairs, strict=True) if pairs else ([], [])))
    return Seen.of((user, item), n_users, device)


def judge(
    score_UI: torch.Tensor, held: list[tuple[int, int]], ks: tuple[int, ...], **more: Any
) -> tuple[Metrics, dict[str, np.ndarray]]:
    """Metrics of users who hold some items out. more: users, seen, cold items, weights of a fusion, the device."""
    U, I = score_UI.shape
    device, cold, weight_UM = more.get("device", "cpu"), more.get("cold", ()), more.get("weight_UM")
    score_UI, relevant = score_UI.to(device), seen_of(held, U, device)

    def score(user_u: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, torch.Tensor | None]:
        return score_UI[user_u], None if weight_UM is None else weight_UM[user_u]

    ranking = Ranking(score, [seen_of(more.get("seen", []), U, device)], I, max(ks), more.get("block", 2))
    is_cold = np.isin(np.arange(I), cold)
    judged = Judged(relevant, ks, relevant.only(is_cold), torch.tensor(cold, device=device)) if cold else None
    users = np.array(more.get("users", range(U)), dtype=np.int64)
    return evaluate(ranking, users, judged or Judged(relevant, ks), keep=more.get("keep", False))


def means(total: Metrics, cold: tuple[int, ...] = ()) -> dict[str, float]:
    return total.means(Engine(), torch.tensor(cold) if cold else None)


def test_a_user_by_hand() -> None:
    """Hits at ranks 1 and 3 of three relevant items."""
    hit = torch.tensor([[True, False, True, False]])
    got = {name: float(x) for name, x in per_user(hit, torch.tensor([3]), (2, 4)).items()}
    want = {
        "precision@2": 1 / 2, "recall@2": 1 / 3, "hit@2": 1, "mrr@2": 1, "ndcg@2": 1 / (1 + SECOND), "ndcg_hits@2": 1,
        "precision@4": 2 / 4, "recall@4": 2 / 3, "hit@4": 1, "mrr@4": 1,
        "ndcg@4": (1 + THIRD) / (1 + SECOND + THIRD), "ndcg_hits@4": (1 + THIRD) / (1 + SECOND),
    }  # fmt: skip
    assert got == pytest.approx(want)


def test_without_hits_and_without_relevant_items_all_are_0() -> None:
    got = per_user(torch.zeros(2, 3, dtype=torch.bool), torch.tensor([2, 0]), (3,))
    assert all(x.tolist() == [0, 0] for x in got.values())


def test_what_was_seen_is_not_listed_and_who_holds_nothing_does_not_count() -> None:
    score = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    held, seen = [(0, 1), (1, 0)], [(0, 0)]
    whole, table = judge(score, held, (1,), seen=seen, keep=True)
    assert whole.users == 2
    assert table["user"].tolist() == [0, 1]
    assert table["precision@1"].tolist() == [1.0, 0.0]
    assert means(whole)["precision@1"] == 0.5
    assert means(whole)["coverage@1"] == pytest.approx(2 / 3)
    parts = [judge(score, held, (1,), seen=seen, users=users)[0] for users in ([0], [1, 2])]
    for name, total in whole.sums.items():
        assert float(sum(part.sums[name] for part in parts)) == pytest.approx(float(total))
    assert torch.equal(sum(part.listed[1] for part in parts), whole.listed[1])


def test_a_relevant_item_that_was_seen_is_no_hit() -> None:
    """Lists are longer than what is left, and end with what may not be listed."""
    total, _ = judge(torch.tensor([[3.0, 2.0, 1.0]]), [(0, 0), (0, 2)], (3,), seen=[(0, 0), (0, 1)])
    assert means(total)["recall@3"] == 0.5
    assert means(total)["mrr@3"] == 1


COLD = (2, 3)
HELD = [(0, 1), (0, 2), (1, 0), (2, 3)]  # user 1 holds no cold item


def test_cold_items_alone_in_the_same_ranking_and_among_themselves() -> None:
    """Users 0 and 2 hold one each, at the ranks 3 and 4 of all items, and 1 and 2 of the cold ones."""
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).repeat(3, 1)
    total, table = judge(score, HELD, (1, 3), cold=COLD, keep=True)
    got = means(total, COLD)
    assert total.cold_users == 2
    assert got["recall@3"] == pytest.approx((1 + 1 + 0) / 3)
    want = {
        "recall@3/cold": 1 / 2, "mrr@3/cold": (1 / 3) / 2, "ndcg@3/cold": THIRD / 2, "recall@1/cold": 0,
        "recall@1/cold-only": 1 / 2, "mrr@3/cold-only": (1 + 1 / 2) / 2, "ndcg@3/cold-only": (1 + SECOND) / 2,
        "precision@3/cold-only": 1 / 3, "coverage@1/cold": 0, "coverage@3/cold": 1 / 2,
    }  # fmt: skip
    assert {name: got[name] for name in want} == pytest.approx(want)
    assert not any("/cold" in name for name in table)


def test_cold_items_that_were_seen_are_not_listed_among_themselves_either() -> None:
    total, _ = judge(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), [(0, 3)], (1,), cold=COLD, seen=[(0, 2)])
    assert means(total, COLD)["recall@1/cold-only"] == 1
    assert means(total, COLD)["recall@1/cold"] == 0


def test_without_held_out_cold_items_there_are_no_cold_metrics() -> None:
    got = means(judge(torch.rand(3, 4), HELD, (3,), cold=COLD, users=[1])[0], COLD)
    assert not any("/cold" in name for name in got)


def test_fusion_weights_are_means_over_users() -> None:
    weight_UM = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    total, table = judge(torch.rand(3, 4), [(0, 1), (1, 0)], (3,), weight_UM=weight_UM, keep=True)
    assert means(total)["fusion weight 0"] == 0.75
    assert table["fusion weight 1"].tolist() == [0.0, 0.5]


def test_a_worker_without_users_knows_the_same_names() -> None:
    """Workers' sums travel side by side."""
    values = {"cold": COLD, "weight_UM": torch.rand(3, 2), "keep": True}
    (none, empty), (all_, full) = (judge(torch.rand(3, 4), HELD, (3,), users=x, **values) for x in ([], [0, 1, 2]))
    assert none.users == none.cold_users == 0
    assert [*none.sums] == [*all_.sums]
    assert empty.keys() == full.keys()
    assert all(not len(x) for x in empty.values())
    assert set(means(none).values()) == {0.0}


def test_many_blocks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from m3dist.evaluation import metrics

    generator = torch.Generator().manual_seed(0)
    score, held = torch.rand(30, 50, generator=generator), [(u, (7 * u + j) % 50) for u in range(30) for j in range(3)]
    want, table = judge(score, held, (5, 10), block=30, cold=COLD, keep=True)
    for together in (1, 8, 100):
        monkeypatch.setattr(metrics, "_TOGETHER", together)
        got, other = judge(score, held, (5, 10), block=4, cold=COLD, keep=True)
        assert means(got, COLD) == pytest.approx(means(want, COLD))
        assert all(np.array_equal(other[name], x) for name, x in table.items())


def test_on_a_device_the_same_metrics_with_one_wait_a_block(counted: Counted) -> None:
    score = torch.rand(30, 400, generator=torch.Generator().manual_seed(0))
    held = [(u, (7 * u + j) % 400) for u in range(30) for j in range(3)]
    want, _ = judge(score, held, (5, 10), block=10)
    counted.clear()
    got, table = judge(score, held, (5, 10), block=10, device="standin")
    assert counted.waits <= 3  # blocks
    assert means(got) == pytest.approx(means(want))
    assert not table
