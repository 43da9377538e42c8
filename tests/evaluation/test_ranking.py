"""What users have seen, and the lists of what they have not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.standin import Counted
from m3dist.evaluation.ranking import Mask, Product, Ranking, Seen, Users, block_size

PAIRS = (np.array([2, 0, 2, 0, 3]), np.array([1, 4, 0, 2, 3], dtype=np.int32))  # of 5 users; 1 and 4 have nothing
HAVE = [[2, 4], [], [0, 1], [3], []]


def seen(device: str = "cpu") -> Seen:
    return Seen.of(PAIRS, 5, device)


def users(*ids: int, device: str = "cpu") -> Users:
    return Users.of(np.array(ids, dtype=np.int64), device)


def test_pairs_in_any_order() -> None:
    for order in (slice(None), slice(None, None, -1), np.lexsort((PAIRS[1], PAIRS[0]))):
        got = Seen.of((PAIRS[0][order], PAIRS[1][order]), 5)
        assert got.bounds.tolist() == got.here.tolist() == [0, 2, 2, 4, 5, 5]
        assert got.item.tolist() == [2, 4, 0, 1, 3]


def test_a_pair_that_stands_twice_counts_once() -> None:
    twice = tuple(np.concatenate([x, x[::-1]]).astype(np.int64) for x in PAIRS)
    got = Seen.distinct(twice, (5, 6))
    assert got.bounds.tolist() == got.here.tolist() == [0, 2, 2, 4, 5, 5]
    assert got.item.tolist() == [2, 4, 0, 1, 3]


def test_nobody_has_anything() -> None:
    none = Seen.of((np.array([], dtype=np.int32),) * 2, 3)
    assert none.bounds.tolist() == [0, 0, 0, 0]
    assert none.hold(users(0, 2), torch.tensor([[1], [0]])).tolist() == [[False], [False]]
    assert not len(none.rows(users(0, 2))[0])


@pytest.mark.parametrize("some", [(0, 1, 2, 3, 4), (4, 2, 0), (2, 2), (1,), ()])
def test_what_some_users_have(some: tuple[int, ...]) -> None:
    """In any order of the users, each as often as it is named."""
    ids = users(*some)
    assert seen().count(ids).tolist() == [len(HAVE[u]) for u in some]
    row, item = seen().rows(ids)
    assert list(zip(row.tolist(), item.tolist(), strict=True)) == [(r, i) for r, u in enumerate(some) for i in HAVE[u]]
    everything = torch.arange(5).expand(len(some), 5)
    assert seen().hold(ids, everything).tolist() == [[i in HAVE[u] for i in range(5)] for u in some]


def test_only_some_items() -> None:
    got = seen().only(np.array([True, False, True, False, False]))
    assert got.bounds.tolist() == [0, 1, 1, 2, 2, 2]
    assert got.item.tolist() == [2, 0]


def test_a_mask_sets_what_users_have_seen() -> None:
    other = Seen.of((np.array([0, 1]), np.array([4, 0])), 5)  # a pair that both know is masked once
    score = torch.zeros(3, 5)
    assert Mask([seen(), other], users(2, 1, 0), 5)(score, 7.0) is score
    assert [[i for i in range(5) if row[i] == 7] for row in score.tolist()] == [[0, 1], [0], [2, 4]]
    assert Mask([], users(2, 1, 0), 5)(torch.ones(3, 5)).sum() == 15


def test_products_of_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    user, item = torch.randn(5, 3, generator=generator), torch.randn(4, 3, generator=generator)
    product = Product(user, item)
    for ids in ([3, 0], [1], [4, 3, 2], []):
        torch.testing.assert_close(product(torch.tensor(ids, dtype=torch.int64)), user[ids] @ item.T)


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_lists_do_not_depend_on_blocks(block: int) -> None:
    """A user who has seen nearly everything has items of score -inf at the end of a list."""
    score = torch.tensor([[5.0, 4, 3, 2, 1]]).repeat(5, 1)

    def weigh(user_u: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, torch.Tensor]:
        return score[user_u], user_u.float()[:, None]

    blocks = list(Ranking(weigh, [seen()], 5, 4, block).blocks(users(3, 2, 0, 1)))
    assert [len(x.users) for x in blocks] == [min(block, 4 - at) for at in range(0, 4, block)]
    assert torch.cat([x.item_uk for x in blocks]).tolist() == [[0, 1, 2, 4], [2, 3, 4, 0], [0, 1, 3, 2], [0, 1, 2, 3]]
    value = torch.cat([x.score_uk for x in blocks])
    assert value.isinf().tolist() == [
        [False] * 4,
        [False, False, False, True],
        [False, False, False, True],
        [False] * 4,
    ]
    assert torch.cat([x.weight_uM for x in blocks if x.weight_uM is not None]).tolist() == [[3.0], [2.0], [0.0], [1.0]]
    assert torch.cat([x.users.there_u for x in blocks]).tolist() == [3, 2, 0, 1]


def test_no_users_are_one_block_without_users() -> None:
    product = Product(torch.ones(5, 2), torch.ones(40, 2))
    (block,) = Ranking(lambda user_u, mask: (product(user_u), None), [seen()], 40, 3, 2).blocks(users())
    assert block.item_uk.shape == block.score_uk.shape == (0, 3)
    assert block.scores.shape == (0, 40)


def test_a_block_on_a_device_waits_once_and_copies_nothing(counted: Counted) -> None:
    generator = torch.Generator().manual_seed(0)
    user, item = torch.randn(5, 3, generator=generator), torch.randn(400, 3, generator=generator)

    def lists(device: str) -> list[list[int]]:
        product = Product(user.to(device), item.to(device))
        ranking = Ranking(lambda user_u, mask: (product(user_u), None), [seen(device)] * 2, 400, 10, 2)
        blocks, out = ranking.blocks(users(0, 2, 3, 4, device=device)), []
        for _ in range(2):
            counted.clear()
            out.append(next(blocks).item_uk)
            assert counted.waits <= 1
            assert counted.copies == 0
        return torch.cat(out).cpu().tolist()

    assert lists("standin") == lists("cpu")


def test_the_size_of_a_block_is_what_was_set_or_what_a_cpu_likes() -> None:
    assert block_size(7, 1000, torch.device("cpu")) == 7
    assert block_size("auto", 10**9, torch.device("cpu")) == 256
