"""Masks from logits, of every kind."""

from __future__ import annotations

import pytest
import torch

from m3dist.models.gate import Gate


@pytest.mark.parametrize("kind", ["sigmoid", "hard_sigmoid", "softmax"])
@pytest.mark.parametrize("init", [0.3, 0.5])
def test_a_mask_starts_at_init_and_stays_between_0_and_1(kind: str, init: float) -> None:
    gate = Gate(4, kind, init, noise=0.1)
    torch.testing.assert_close(gate(), torch.full((4,), init))
    gate.logit.data = torch.tensor([-30.0, -0.2, 0.2, 30.0])
    mask = gate()
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert (mask.diff() >= 0).all()


def test_sigmoid_and_hard_sigmoid_by_hand() -> None:
    logit = torch.tensor([-1.0, 0.0, 0.25, 2.0])
    soft, hard = Gate(4, "sigmoid", 0.5), Gate(4, "hard_sigmoid", 0.5)
    soft.logit.data, hard.logit.data = logit, logit
    torch.testing.assert_close(soft(), 1 / (1 + torch.exp(-logit)))
    assert hard().tolist() == [0.0, 0.5, 0.75, 1.0]


def test_softmax_is_over_dimensions_and_its_mean_is_init() -> None:
    gate = Gate(4, "softmax", 0.25)
    gate.logit.data = torch.tensor([0.0, 0.5, 1.0, -1.0])
    torch.testing.assert_close(gate(), gate.logit.softmax(0))
    assert float(gate().mean().detach()) == pytest.approx(0.25)


def test_noise_moves_the_stochastic_gate_alone_and_only_when_given() -> None:
    noise = torch.tensor([1.0, -1.0, 0.0])
    gate = Gate(3, "hard_sigmoid", 0.5, noise=0.1)
    torch.testing.assert_close(gate(noise), torch.tensor([0.6, 0.4, 0.5]))
    torch.testing.assert_close(gate(), torch.full((3,), 0.5))
    torch.testing.assert_close(Gate(3, "sigmoid", 0.5, noise=0.1)(noise), torch.full((3,), 0.5))
