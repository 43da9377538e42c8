"""Order, negatives and shares of global batches, as functions of seed, epoch and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m3dist.data.sampling import Distinct, Draws, Permutation, Sampler, share


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 4097])
def test_permutation_is_a_bijection(n: int) -> None:
    assert sorted(Permutation(n, 3)(np.arange(n))) == list(range(n))


def test_permutations_of_two_seeds_differ() -> None:
    assert (Permutation(1000, 0)(np.arange(1000)) != Permutation(1000, 1)(np.arange(1000))).mean() > 0.9


@pytest.mark.parametrize("per_positive", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_workers_shares_make_the_global_batch(world: int, per_positive: bool) -> None:
    user, item = torch.arange(103), torch.arange(103) % 17
    sampler = Sampler((user, item), 17, 25, Draws(6, per_positive), (0, "t"))
    for step in range(sampler.steps):
        whole = sampler(2, step)
        parts = [sampler(2, step, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([p.user_b for p in parts]), whole.user_b)
        negative = torch.cat([p.negative for p in parts]) if per_positive else parts[1].negative
        assert torch.equal(negative, whole.negative)


@pytest.mark.parametrize("world", [1, 2, 3, 25])
def test_groups_share_negatives_of_their_own(world: int) -> None:
    """Whoever has an interaction has its group's negatives, one of each stretch of ids."""
    user, item = torch.arange(103), torch.arange(103) % 18
    sampler = Sampler((user, item), 18, 25, Draws(6, groups=4), (0, "t"))
    for step in range(sampler.steps):
        whole = sampler(2, step)
        negative_GN = whole.negative_B.view(4, 6)
        assert torch.equal(negative_GN // 3, torch.arange(6).expand(4, 6))
        assert len({tuple(row) for row in negative_GN.tolist()}) == 4
        of_group = [g for g in range(4) for _ in range(*share(whole.size, g, 4))]
        for rank in range(world):
            part = sampler(2, step, rank, world)
            assert sum(part.parts) == len(part.user_b)
            assert torch.equal(part.negative_B, whole.negative_B)
            mine = part.negative.view(len(part.parts), 6).repeat_interleave(torch.tensor(part.parts), dim=0)
            assert torch.equal(mine, negative_GN[of_group[slice(*part.bounds)]])


def test_an_epoch_visits_every_interaction_once() -> None:
    sampler = Sampler((torch.arange(103), torch.zeros(103)), 5, 25, Draws(2), (0, "t"))
    seen = torch.cat([sampler(0, s).index_b for s in range(sampler.steps)])
    assert sorted(seen.tolist()) == list(range(103))


@pytest.mark.parametrize("n", [10, 10_000])
def test_distinct(n: int) -> None:
    a, b = torch.tensor([[3, 1], [3, 9]]), torch.tensor([9, 0])
    ids, (at_a, at_b) = Distinct(n)(a, b)
    assert ids.tolist() == [0, 1, 3, 9]
    assert torch.equal(ids[at_a], a)
    assert torch.equal(ids[at_b], b)
