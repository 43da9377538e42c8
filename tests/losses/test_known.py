"""Values whose gradients were found beside them, as functions of their inputs."""

from __future__ import annotations

import torch

from m3dist.losses.known import known


def test_known_gradients_reach_their_inputs_scaled_by_what_comes_after() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    value = known(torch.tensor(5.0), [a, b], [torch.arange(2.0), torch.arange(3.0)])
    assert float(value.detach()) == 5
    (2 * value).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == [0, 2]
    assert b.grad.tolist() == [0, 2, 4]


def test_they_pass_through_what_the_inputs_are_made_of() -> None:
    x = torch.ones(2, requires_grad=True)
    known(torch.tensor(5.0), [3 * x], [torch.tensor([1.0, 2.0])]).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 6]
