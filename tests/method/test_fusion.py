"""Weights of recommenders and fused scores by hand."""

from __future__ import annotations

import math

import pytest
import torch

from m3dist.method import fusion


def test_entropy_weights_are_eq_13_and_14() -> None:
    assert float(fusion.entropy(torch.zeros(1, 8))) == pytest.approx(math.log(8), rel=1e-6)
    weights = fusion.entropy_weights(torch.tensor([[1.0, 2.0, 3.0]]))
    shifted = torch.exp(3.0 - torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(weights[0], shifted / shifted.sum())
    assert float(weights.sum()) == pytest.approx(1.0)


def test_fuse_of_one_model_is_its_score() -> None:
    score = torch.arange(6.0).view(2, 3)
    torch.testing.assert_close(fusion.fuse(fusion.entropy_weights(torch.ones(2, 1)), [score.clone()]), score)
