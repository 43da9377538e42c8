"""Fits of projections by environment against autograd on loops over samples, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from m3dist.losses.projection import Fit, Projection, Samples, Tiles, projection_fits

d, c, N, ITEMS = 3, 2, 8, 11


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randint(high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


class Case:
    """b samples of R representations, some in no environment. tau: of the softmax, None for UltraGCN's loss."""

    def __init__(self, b: int, E: int, one_for_all: bool, widths: tuple[int, ...] = (4, 3), tau: float | None = None):
        self.b, self.E, self.one_for_all, self.tau = b, E, one_for_all, tau
        self.user, self.ids = randn(b, d + c), randn(ITEMS, d, seed=1)
        self.item, self.negative = randint(ITEMS, b, seed=2), randint(ITEMS, N, seed=3)
        self.positive, self.base, self.scale = (randn(b, seed=4 + k).abs() for k in range(3))
        self.weight = randn(N, seed=7).abs()
        self.x = [randn(ITEMS, D, seed=8 + r) for r, D in enumerate(widths)]
        g = 1 if one_for_all else E
        self.W = [randn(g, c, D, seed=20 + r) for r, D in enumerate(widths)]
        self.bias = [randn(g, c, seed=30 + r) for r in range(len(widths))]
        self.environment = torch.stack([randint(E + 1, b, seed=40 + r) for r in range(len(widths))])
        self.environment[:, : b // 2] = 0  # one environment is larger than the others
        self.never: int | None = None  # a negative whose scores without content are far below all others

    def fits(self, device: str = "cpu", dtype: torch.dtype = torch.float64, moments: bool = True) -> list[Fit]:
        def put(x: torch.Tensor) -> torch.Tensor:
            return (x.to(dtype) if x.is_floating_point() else x).to(device)

        score = self.user[:, :d] @ self.ids[self.negative].T
        if self.never is not None:
            score[:, self.never] = -1e9
        own = (self.user[:, :d] * self.ids[self.item]).sum(1)
        numbers = (score, own, self.user[:, d:], self.positive, self.base, self.scale, self.weight)
        samples = Samples(*(put(x) for x in numbers), put(self.item), put(self.negative), self.tau)
        projections = [Projection(put(x), put(W), put(b)) for x, W, b in zip(self.x, self.W, self.bias, strict=True)]
        tiles = Tiles(self.b, self.E, torch.device(device))
        return projection_fits(samples, projections, put(self.environment), tiles, moments)

    def losses(self, r: int, W: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Of every sample under the projection of its environment, [b]; all items are projected and scored."""
        at = torch.zeros(self.b).long() if self.one_for_all else self.environment[r].clamp(max=self.E - 1)
        item = torch.einsum("id,bcd->bic", self.x[r], W[at]) + bias[at].unsqueeze(1)
        score = self.user[:, :d] @ self.ids.T + torch.einsum("bic,bc->bi", item, self.user[:, d:])
        own, others = score.gather(1, self.item[:, None]), score[:, self.negative]
        if self.tau is not None:
            none = torch.zeros(self.b, dtype=torch.long)  # the class of the positive
            return self.positive * F.cross_entropy(torch.cat([own, others], 1) / self.tau, none, reduction="none")
        weight = self.base[:, None] + self.scale[:, None] * self.weight
        return (weight * F.softplus(others)).sum(1) + self.positive * F.softplus(-own.squeeze(1))


LOSSES = pytest.mark.parametrize("tau", [None, 0.25], ids=["ultragcn", "softmax"])


@LOSSES
@pytest.mark.parametrize("one_for_all", [False, True])
@pytest.mark.parametrize(("b", "E"), [(7, 3), (100, 4), (5, 1), (2, 6)])
@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_fits_against_autograd(counted: Any, b: int, E: int, one_for_all: bool, device: str, tau: float | None) -> None:
    """Losses, gradients and second moments of each environment, of those without samples too."""
    case = Case(b, E, one_for_all, tau=tau)
    fits = case.fits(device)
    for r, fit in enumerate(fits):
        W, bias = case.W[r].clone().requires_grad_(), case.bias[r].clone().requires_grad_()
        each_b = case.losses(r, W, bias)
        of_W, of_bias = torch.autograd.grad(each_b, [W, bias], torch.eye(b).double(), is_grads_batched=True)
        assert fit.second_ED is not None
        for e in range(E):
            mine, at = case.environment[r] == e, 0 if one_for_all else e
            assert int(fit.count_E[e]) == int(mine.sum())
            gradients = of_W[mine, at]
            want = (
                each_b[mine].sum().detach(),
                gradients.sum(0),
                of_bias[mine, at].sum(0),
                gradients.square().sum((0, 1)),
            )
            for a, b_ in zip((fit.loss_E[e], fit.gradient_EcD[e], fit.bias_Ec[e], fit.second_ED[e]), want, strict=True):
                torch.testing.assert_close(a.cpu(), b_, rtol=1e-9, atol=1e-9)


@LOSSES
def test_nobody_in_an_environment(tau: float | None) -> None:
    case = Case(6, 2, False, tau=tau)
    case.environment[:] = 2
    for fit in case.fits():
        for x in (fit.count_E, fit.loss_E, fit.gradient_EcD, fit.bias_Ec, fit.second_ED):
            assert x is not None
            assert x.count_nonzero() == 0


@LOSSES
def test_bits_of_an_environment_do_not_depend_on_the_others(tau: float | None) -> None:
    """On a CPU: actors that hold some of the environments find what one that holds all does."""
    case = Case(100, 4, False, tau=tau)
    whole = case.fits(dtype=torch.float32)
    alone = Case(100, 1, False, tau=tau)
    alone.W, alone.bias = [x[2:3] for x in case.W], [x[2:3] for x in case.bias]
    alone.environment = (case.environment != 2).long()
    for a, b in zip(whole, alone.fits(dtype=torch.float32), strict=True):
        assert torch.equal(a.gradient_EcD[2], b.gradient_EcD[0])
        assert torch.equal(a.loss_E[2], b.loss_E[0])


@LOSSES
def test_extreme_scores_stay_finite(tau: float | None) -> None:
    case = Case(20, 3, False, tau=tau)
    case.user *= 1e4
    for fit in case.fits(dtype=torch.float32):
        for x in (fit.loss_E, fit.gradient_EcD, fit.bias_Ec, fit.second_ED):
            assert x is not None
            assert torch.isfinite(x).all()


@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_the_softmax_of_a_sample_leaves_out_what_scores_nothing(counted: Any, device: str) -> None:
    """A negative of score -1e9, as the positive itself is among negatives: as if it had not been drawn."""
    case, rest = (Case(40, 3, True, tau=0.25) for _ in range(2))
    case.never = 5
    rest.negative = torch.cat([rest.negative[:5], rest.negative[6:]])
    rest.weight = rest.weight[1:]
    for a, b in zip(case.fits(device), rest.fits(device), strict=True):
        for name in ("loss_E", "gradient_EcD", "bias_Ec", "second_ED"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9)


@LOSSES
@pytest.mark.parametrize("one_for_all", [False, True])
def test_on_a_device_the_same_numbers_without_waiting(counted: Any, one_for_all: bool, tau: float | None) -> None:
    case = Case(100, 4, one_for_all, widths=(4, 3, 5, 6), tau=tau)
    want = case.fits(dtype=torch.float32)
    tables = counted.copies
    got = case.fits("standin", torch.float32)
    assert counted.copies - tables == 22  # what the test itself moves there
    assert counted.waits == 0
    assert counted.launches <= 170
    slope = 1 / (tau or 1)  # the largest of a loss
    for a, b in zip(got, want, strict=True):
        for name in ("count_E", "loss_E", "gradient_EcD", "bias_Ec", "second_ED"):
            torch.testing.assert_close(getattr(a, name).cpu(), getattr(b, name), rtol=1e-5, atol=1e-5 * slope**2)
