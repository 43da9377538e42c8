"""Each interaction in the environment that scores it highest, whatever the shares that the work is cut into."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from m3dist.distributed.engine import Engine
from m3dist.method.assignment import Blocks, Models, assign
from m3dist.method.environments import Trained

USERS, ITEMS, E, c, D = 40, 30, 7, 4, 6


def skewed() -> torch.Tensor:
    """One item with 700 interactions, which is three pieces, some with one, and items that have none."""
    item = torch.cat([torch.full((700,), 3), torch.arange(10, 25), torch.arange(10, 20), torch.full((256,), 28)])
    return item[torch.randperm(len(item), generator=torch.Generator().manual_seed(0))].int()


def made(
    item: torch.Tensor, tau: float | None = None, pool: torch.Tensor | None = None, environments: int = 10
) -> SimpleNamespace:
    """What is read of stage 2's frozen parts, the spare item behind the others."""
    generator = torch.Generator().manual_seed(1)
    user = torch.randint(USERS, item.shape, generator=generator, dtype=torch.int32)
    return SimpleNamespace(
        settings=SimpleNamespace(environments=environments), engine=Engine(), user=user, item=item,
        content_Uc=torch.randn(USERS, c, generator=generator), content=c,
        x=[torch.randn(ITEMS + 1, D, generator=generator)], item_Id=torch.zeros(ITEMS + 1, 3), tau=tau, pool=pool,
    )  # fmt: skip


def test_blocks_hold_every_interaction_once_and_one_item_a_piece() -> None:
    item = skewed()
    blocks = Blocks.of(item)
    assert sorted(blocks.interactions(0, 1).tolist()) == list(range(len(item)))
    for pieces, k in blocks.blocks:
        places, there = blocks.places(pieces, k)
        assert (item[blocks.order_n[places]] == blocks.item[pieces, None]).all()
        assert (2 * there.sum(1) > k).all()  # no wider than it must be


@pytest.mark.parametrize("parts", [2, 3, 50])
def test_shares_are_disjoint_and_complete(parts: int) -> None:
    blocks = Blocks.of(skewed())
    cut = torch.cat([blocks.interactions(at, parts) for at in range(parts)])
    assert torch.equal(cut, blocks.interactions(0, 1))


def test_interactions_stand_by_item_and_within_one_in_their_order() -> None:
    """Also where there are more than are sorted at once, and an item's lie far apart."""
    item = torch.randint(5000, (600_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    order = Blocks.of(item).order_n
    assert order.dtype == torch.int32
    assert torch.equal(order.long(), torch.argsort(item, stable=True))


@pytest.mark.parametrize(("environments", "dtype"), [(128, torch.int8), (129, torch.int16)])
def test_the_highest_score_wins(environments: int, dtype: torch.dtype) -> None:
    frozen, blocks = made(skewed(), environments=environments), Blocks.of(skewed())
    generator = torch.Generator().manual_seed(2)
    W, b, scale = (torch.randn(shape, generator=generator) for shape in ((E, c, D), (E, c), (D,)))
    names = [0, 2, 3, 5, 6, 8, 9]
    models = Models(0, scale, names, Trained(W, b))
    got = assign(frozen, blocks, models)
    psi = frozen.x[0][frozen.item.long()] * scale
    score = torch.einsum("nc,enc->ne", frozen.content_Uc[frozen.user.long()], psi @ W.transpose(1, 2) + b[:, None])
    assert got.dtype == dtype
    assert got.tolist() == [names[e] for e in score.argmax(1).tolist()]
    parts = [assign(frozen, blocks, models, (at, 3)) for at in range(3)]
    assert torch.equal(sum(parts), got)
    for at, part in enumerate(parts):
        mine = torch.zeros(len(got), dtype=torch.bool)
        mine[blocks.interactions(at, 3)] = True
        assert part[~mine].count_nonzero() == 0


@pytest.mark.parametrize("pool", [None, torch.arange(2, ITEMS, 3)])
def test_the_likeliest_wins_under_the_softmax(pool: torch.Tensor | None) -> None:
    """Scores of a model are held against its scores of the catalogue, or of what negatives are drawn from."""
    frozen = made(skewed(), 0.3, pool)
    generator = torch.Generator().manual_seed(2)
    W, b, scale = (torch.randn(shape, generator=generator) for shape in ((3, c, D), (3, c), (D,)))
    W[1] *= 3  # has the largest scores, of every item
    got = assign(frozen, Blocks.of(frozen.item), Models(0, scale, [0, 2, 3], Trained(W, b)))
    x_ID = (frozen.x[0][:ITEMS] * scale).double()
    score_UIg = torch.einsum("uc,gic->uig", frozen.content_Uc.double(), x_ID @ W.double().mT + b.double()[:, None])
    among = score_UIg if pool is None else score_UIg[:, pool]
    log_UIg = score_UIg / 0.3 - torch.logsumexp(among / 0.3, 1, keepdim=True)
    best_n = log_UIg[frozen.user.long(), frozen.item.long()].argmax(1)
    assert got.tolist() == [(0, 2, 3)[e] for e in best_n.tolist()]
    assert set(got.tolist()) == {0, 2, 3}
    by_score_n = score_UIg[frozen.user.long(), frozen.item.long()].argmax(1)
    assert (by_score_n != best_n).double().mean() > 0.1  # which would be another answer


def test_ties_go_to_the_first() -> None:
    models = Models(0, torch.ones(D), [1, 4, 5], Trained(torch.zeros(3, c, D), torch.zeros(3, c)))
    assert set(assign(made(skewed()), Blocks.of(skewed()), models).tolist()) == {1}


def test_no_interactions() -> None:
    none = torch.zeros(0, dtype=torch.int32)
    models = Models(0, torch.ones(D), [0, 1, 2], Trained(torch.zeros(3, c, D), torch.zeros(3, c)))
    assert not len(assign(made(none), Blocks.of(none), models))
