"""Item-item neighbours against a dense computation, and what a cap leaves of users with very many interactions."""

from __future__ import annotations

import numpy as np
import pytest

from m3dist.data import graphs
from m3dist.data.graphs import ItemGraph, item_neighbours


@pytest.fixture
def dense() -> np.ndarray:
    """Who interacted with what, bool [30, 12]."""
    return np.random.default_rng(0).random((30, 12)) < 0.3


def test_item_neighbours_against_a_dense_computation(dense: np.ndarray) -> None:
    neighbour, omega = ItemGraph(np.nonzero(dense), (30, 12), 4).rows(0, 12, block=40)
    G = dense.T.astype(float) @ dense
    g = G.sum(1)
    full = G / (g - np.diag(G))[:, None] * np.sqrt(g[:, None] / g[None, :])
    np.fill_diagonal(full, -1)
    for i in range(12):
        best = np.lexsort((np.arange(12), -full[i]))[:4]
        np.testing.assert_allclose(omega[i], full[i, best], rtol=1e-6)
        np.testing.assert_allclose(full[i, neighbour[i]], full[i, best], rtol=1e-12)


def test_parts_of_any_size_give_the_same_bits(dense: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = np.nonzero(dense)
    whole = item_neighbours(pairs, (30, 12), 4)
    assert len(graphs.parts(pairs, (30, 12))) == 1
    monkeypatch.setattr(graphs, "_PART", 100)
    assert len(graphs.parts(pairs, (30, 12))) > 3
    for x, y in zip(whole, item_neighbours(pairs, (30, 12), 4), strict=True):
        np.testing.assert_array_equal(x, y)


def test_few_neighbours_and_no_item_are_filled_up_with_themselves() -> None:
    """Items 0 and 1 share a user; nobody has item 2; behind them is the item that is none."""
    neighbour, omega = item_neighbours((np.array([0, 0]), np.array([0, 1])), (1, 3), 2)
    assert neighbour.tolist() == [[1, 0], [0, 1], [2, 2], [3, 3]]
    assert omega[:, 1].tolist() == [0, 0, 0, 0]
    assert (omega[:, 0] > 0).tolist() == [True, True, False, False]


def test_a_cap_leaves_a_sample_of_busy_users_that_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(1)
    user, item = np.nonzero(rng.random((40, 60)) < np.linspace(0.05, 0.9, 40)[:, None])
    count = np.bincount(user)
    assert graphs.capped((user, item), int(count.max()))[0] is user
    kept = graphs.capped((user, item), 20)
    np.testing.assert_array_equal(np.bincount(kept[0]), np.minimum(count, 20))
    assert set(zip(*kept, strict=True)) < set(zip(user, item, strict=True))
    order = rng.permutation(len(user))
    shuffled = graphs.capped((user[order], item[order]), 20)
    assert set(zip(*shuffled, strict=True)) == set(zip(*kept, strict=True))
    of_busy = [{*kept[1][kept[0] == u]} for u in np.argsort(count)[-2:]]
    assert of_busy[0] != of_busy[1]
    assert max(of_busy[0]) > 40  # not the first of them
