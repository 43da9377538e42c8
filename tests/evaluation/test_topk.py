"""The best items of every row, exactly, against a sort in Python."""

from __future__ import annotations

import pytest
import torch

from benchmarks.standin import Counted
from m3dist.evaluation.topk import top_k

INF = float("inf")


def by_sorting(score: torch.Tensor, k: int) -> list[list[int]]:
    rows = score.tolist()
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in rows]


@pytest.mark.parametrize(("items", "k"), [(5, 10), (40, 3), (1003, 10), (1003, 40), (1, 1)])
@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_ties_go_to_the_smaller_id(counted: Counted, items: int, k: int, device: str) -> None:
    """k is cut to the number of items; where there are many, only the best groups of columns are looked at."""
    score = torch.randint(-3, 3, (50, items), generator=torch.Generator().manual_seed(0)).float()
    score[:, 1::7] = -INF
    score[0] = 0.0
    score[0, ::2] = -0.0  # which is a tie
    item, value = (x.cpu() for x in top_k(score.to(device), k))
    assert item.tolist() == by_sorting(score, k)
    assert torch.equal(value, score.gather(1, item))


@pytest.mark.parametrize("items", [40, 1003])
def test_without_ties(items: int) -> None:
    rows = [torch.randperm(items, generator=torch.Generator().manual_seed(seed)).float() for seed in range(20)]
    score = torch.stack(rows) - items // 2
    item, value = top_k(score, 10)
    assert item.tolist() == by_sorting(score, 10)
    assert torch.equal(value, score.gather(1, item))


@pytest.mark.parametrize(("items", "at"), [(40, 39), (1003, 0), (1003, 500), (1003, 1002)])
@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_nan_anywhere_is_an_error(counted: Counted, items: int, at: int, device: str) -> None:
    score = torch.zeros(4, items)
    score[2, at] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN; lower the learning rate"):
        top_k(score.to(device), 10)


def test_of_no_rows() -> None:
    for items in (5, 1003):
        item, value = top_k(torch.zeros(0, items), 3)
        assert item.shape == value.shape == (0, 3)


@pytest.mark.parametrize("items", [40, 1003])
def test_a_block_costs_one_wait(counted: Counted, items: int) -> None:
    rows = [torch.randperm(items, generator=torch.Generator().manual_seed(seed)).float() for seed in range(20)]
    score = torch.stack(rows).to("standin")
    counted.clear()
    top_k(score, 10)
    assert (counted.waits, counted.copies) == (1, 0)
