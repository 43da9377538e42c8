"""Features as training sees them."""

from __future__ import annotations

import torch

from m3dist.training.data import standardised


def test_columns_have_mean_zero_and_variance_one() -> None:
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    out = standardised(x, x)
    torch.testing.assert_close(out.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(5))


def test_only_items_that_have_the_modality_count() -> None:
    x = torch.tensor([[1.0], [3.0], [99.0]])
    assert standardised(x, x[:2])[:2].tolist() == [[-1.0], [1.0]]


def test_constant_columns_become_zero() -> None:
    """Their rounding errors, scaled to variance one, would outweigh all other columns."""
    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    for column, value in ((1, 0.1), (2, 1e-8), (3, -12345.678), (4, 0.0)):
        x[:, column] = value
    x[:, 5] = 0.3 + (torch.arange(1000) % 2) * 2**-25  # alike but for float32's last bit
    out = standardised(x, x)
    assert (out[:, 1:] == 0).all()
    assert out[:, 0].abs().min() > 0


def test_a_small_spread_around_a_large_mean_is_no_constant() -> None:
    x = (1000 + torch.arange(8) * 0.01)[:, None]
    torch.testing.assert_close(standardised(x, x).var(0, correction=0), torch.ones(1), rtol=1e-3, atol=0)
