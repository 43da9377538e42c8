"""UltraGCN's constants by hand, and the rows whose products are its scores."""

from __future__ import annotations

import pytest
import torch

from m3dist.models.ultragcn import UltraGCN, Weights

W = (1.0, 0.7, 0.9, 1.1)
DEGREES = torch.tensor([3, 1, 0]), torch.tensor([2, 0])
GRAPH = torch.tensor([[1, 0], [0, 1], [2, 2]]), torch.tensor([[0.5, 0.0], [0.25, 0.125], [0.0, 0.0]])


def test_weights_are_those_of_the_paper() -> None:
    """beta_ui = 1/d_u sqrt((d_u + 1) / (d_i + 1)), of eq. 9; a user without interactions counts as one with one."""
    weights = Weights(DEGREES, W, 0.5)
    for u, d_u in enumerate((3, 1, 1)):
        base, scale = weights.negative(torch.tensor([u]))
        for i, d_i in enumerate((2, 0)):
            beta = ((d_u + 1) / (d_i + 1)) ** 0.5 / d_u
            positive = weights.positive(torch.tensor([[u]]), torch.tensor([[i]]))
            assert positive.shape == (1, 1)
            assert float(positive) == pytest.approx(W[0] + 0.5 * W[1] * beta, rel=1e-6)
            assert base + float(scale * weights.c_I[i]) == pytest.approx(W[2] + 0.5 * W[3] * beta, rel=1e-6)


def test_neighbours_stand_by_column_and_are_scaled_to_the_sum_over_all() -> None:
    """An item that is not there, 2, has itself as a neighbour of no weight."""
    weights = Weights(DEGREES, W, 0.5, GRAPH)
    item_X, both = torch.tensor([1, 0, 2]), torch.tensor([1, 0])
    near_sX, omega_sX = weights.neighbours(item_X, both)
    assert near_sX.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert omega_sX.tolist() == [[0.125, 0.0, 0.0], [0.25, 0.5, 0.0]]
    near_sX, omega_sX = weights.neighbours(item_X, both[1:])
    assert near_sX.tolist() == [[0, 1, 2]]
    assert omega_sX.tolist() == [[0.5, 1.0, 0.0]]


def test_ids_and_weights_of_what_is_not_there_are_finite() -> None:
    weights = Weights(DEGREES, W, 0.5, GRAPH)
    nobody, nothing = torch.tensor([3]), torch.tensor([2])
    for x in (weights.positive(nobody, nothing), weights.negative(nobody)[1], weights.c_I[nothing]):
        assert torch.isfinite(x).all()


def test_an_items_row_is_its_id_and_its_projected_content() -> None:
    model, id_Rd, content_Rw = UltraGCN(4, 3), torch.randn(5, 2), torch.randn(5, 4)
    assert model.project is not None
    want = torch.cat([id_Rd, content_Rw @ model.project.weight.T + model.project.bias], dim=1)
    torch.testing.assert_close(model.item_rows(id_Rd, content_Rw), want)
    assert torch.equal(UltraGCN(0, 3).item_rows(id_Rd, None), id_Rd)
