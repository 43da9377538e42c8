"""Sparse propagation against dense float64 products, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m3dist.models.sparse import Graph, dots, softmax, spread

EDGES = [(0, 2), (0, 0), (1, 2), (3, 1), (3, 2), (3, 0)]  # destination 2 has no edge; source 3 has none


@pytest.fixture
def graph() -> Graph:
    destination, source = torch.tensor(EDGES).T
    return Graph(destination, source, 4, 4)


def dense(graph: Graph, value_E: torch.Tensor) -> torch.Tensor:
    return torch.zeros(4, 4, dtype=torch.float64).index_put((graph.row, graph.col.long()), value_E)


def test_edges_are_ordered_and_counted(graph: Graph) -> None:
    assert list(zip(graph.row.tolist(), graph.col.tolist(), strict=True)) == sorted(EDGES)
    assert graph.degree().tolist() == [2, 1, 0, 3]
    assert graph.degree_out().tolist() == [2, 1, 3, 0]
    np.testing.assert_allclose(graph.mean(), [1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(graph.symmetric()[1], 1 / np.sqrt(2 * 3), rtol=1e-6)


def test_spread_and_dots_and_their_gradients(graph: Graph) -> None:
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(6, generator=rng, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    q = torch.randn(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(spread(graph, w, x), dense(graph, w) @ x)
    torch.testing.assert_close(dots(graph, q, x), (q @ x.T)[graph.row, graph.col.long()])
    assert torch.autograd.gradcheck(lambda w, x: spread(graph, w, x), (w, x))
    assert torch.autograd.gradcheck(lambda q, x: dots(graph, q, x), (q, x))


def test_softmax_over_incoming_edges(graph: Graph) -> None:
    score = torch.tensor([1.0, 3.0, 500.0, -1.0, 0.0, 2.0])
    got = softmax(graph, score)
    want = torch.cat([score[:2].softmax(0), score[2:3].softmax(0), score[3:].softmax(0)])
    torch.testing.assert_close(got, want)


def test_softmax_gradient(graph: Graph) -> None:
    score = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: softmax(graph, s), score)
