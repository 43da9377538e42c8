"""The backbone's loss where every positive has negatives of its own, against a loop."""

from __future__ import annotations

import pytest
import torch

from m3dist.models import ultragcn


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("items", [4, 400])
def test_own_negatives_value_and_gradients(items: int) -> None:
    """The same as a loop, with few items, which are all scored, and with many, of which the negatives alone are."""
    degrees = torch.tensor([3, 1, 2]), torch.tensor([2, 1, 3, *[0] * (items - 3)])
    weights = ultragcn.Weights(degrees, (1.0, 0.7, 0.9, 1.1), 0.5)
    user_id, item_id = torch.tensor([0, 2]), torch.tensor([1, 3])
    negative = torch.tensor([[0, 1, 1], [2, 0, 3]])  # one of them twice
    user, item = randn(2, 5).requires_grad_(), randn(items, 5, seed=1).requires_grad_()
    got = ultragcn.interaction_loss(user, item, (item_id, negative), (user_id, item_id, negative), weights)
    c_I, a_U = weights.c_I.double(), weights.a_U.double()
    want = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    for b, (u, i) in enumerate(zip(user_id.tolist(), item_id.tolist(), strict=True)):
        want[0] -= (1.0 + 0.5 * 0.7 * a_U[u] * c_I[i]) * (user[b] @ item[i]).sigmoid().log()
        for j in negative[b].tolist():
            weight = 0.9 + 0.5 * 1.1 * a_U[u] * c_I[j]
            want[1] -= weight * (1 - (user[b] @ item[j]).sigmoid()).log()
    for ours, value in zip(got, want, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(sum(got), [user, item]), torch.autograd.grad(sum(want), [user, item]), rtol=1e-6, atol=1e-7
    )
