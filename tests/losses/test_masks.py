"""The loss of masks against autograd on the same formula, representation by representation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_projection import Case, randn

from m3dist.losses.masks import Columns, Penalties, Terms, environment_variance, mask_loss

WIDTHS = (4, 3)


def found(
    case: Case, mask: torch.Tensor, device: str = "cpu", dtype: torch.dtype = torch.float64, **more: Any
) -> Terms:
    """The masks' loss with each representation's W times its mask."""
    whole = case.W
    case.W = [W * part for W, part in zip(whole, mask.split(WIDTHS), strict=True)]
    fits, case.W = case.fits(device, dtype), whole
    columns = Columns(WIDTHS, torch.device(device))
    columns.member_RV, columns.width_V = columns.member_RV.to(dtype), columns.width_V.to(dtype)
    parameters = (torch.cat(whole, dim=2)[0].to(device, dtype), mask.to(device, dtype))
    share = torch.full((), 0.75, dtype=dtype, device=device)
    return mask_loss(fits, parameters, Penalties(0.7, 0.3, share), columns, **more)


@pytest.mark.parametrize(("b", "E"), [(60, 3), (9, 6)])
def test_against_autograd(b: int, E: int) -> None:
    """Also where some environments have one sample or none, and one sample has no environment."""
    case, mask = Case(b, E, True, WIDTHS), randn(sum(WIDTHS), seed=50).sigmoid()
    if b == 9:
        case.environment[:] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 6])
    case.user, case.positive, case.scale = 1 + 0.1 * case.user, 0.01 * case.positive, 0 * case.scale
    case.base = 1.0 + case.environment[0]
    got = found(case, mask)
    assert got.variance_R[0] > 0.1  # environments differ by more than noise
    start = 0
    for r, D in enumerate(WIDTHS):
        W, bias = case.W[r].clone().requires_grad_(), case.bias[r].clone().requires_grad_()
        mask_D = mask[start : start + D].clone().requires_grad_()
        each_b = case.losses(r, W * mask_D, bias)
        rows = [case.environment[r] == e for e in range(E)]
        here = [row for row in rows if row.any()]
        fit = torch.stack([each_b[row].mean() for row in here]).mean()
        scaled = (W * mask_D).detach().requires_grad_()
        single = case.losses(r, scaled, bias.detach())
        gradient = torch.autograd.grad(single, scaled, torch.eye(b).double(), is_grads_batched=True)[0][:, 0]
        pairs = [gradient[row] for row in rows if row.sum() >= 2]
        means = torch.stack([x.mean(0) for x in pairs])
        noise = sum(x.var(0).sum(0) / len(x) for x in pairs) * (1 - 1 / len(pairs))
        variance = ((means - means.mean(0)).square().sum((0, 1)) - noise).clamp(min=0)
        relative = variance / variance.mean().clamp(min=1e-30)
        terms = (fit, 0.75 * 0.7 * (relative * mask_D).square().mean(), 0.75 * 0.3 * mask_D.square().mean())
        for mine, want in zip((got.fit_R[r], got.variance_R[r], got.size_R[r]), terms, strict=True):
            torch.testing.assert_close(mine, want.detach(), rtol=1e-9, atol=1e-12)
        gradients = torch.autograd.grad(sum(terms), [W, bias, mask_D])
        ours = (got.W_grad_cV[:, start : start + D], got.bias_grad_Rc[r], got.mask_grad_V[start : start + D])
        for a, b_ in zip(ours, gradients, strict=True):
            torch.testing.assert_close(a, b_.view_as(a), rtol=1e-9, atol=1e-12)
        start += D


def test_nobody_in_an_environment() -> None:
    case = Case(6, 2, True, WIDTHS)
    case.environment[:] = 2
    got = found(case, torch.full((sum(WIDTHS),), 0.5, dtype=torch.float64))
    assert got.fit_R.tolist() == [0, 0]
    assert got.variance_R.tolist() == [0, 0]
    for x in (got.W_grad_cV, got.bias_grad_Rc, got.mask_grad_V):
        assert torch.isfinite(x).all()


def test_workers_parts_add_up() -> None:
    """Two workers with half of the samples each find together what one with all does."""
    whole, mask = Case(60, 3, True, WIDTHS), randn(sum(WIDTHS), seed=50).sigmoid()
    first = torch.arange(60) < 30
    halves = []
    for mine in (first, ~first):
        part = Case(60, 3, True, WIDTHS)
        part.environment = torch.where(mine, part.environment, 3)  # the others' samples are in none of its environments
        halves.append(part)
    sums: list[list[torch.Tensor]] = []

    def keep(tensors: list[torch.Tensor]) -> None:
        sums.append([x.clone() for x in tensors])

    def add(tensors: list[torch.Tensor]) -> None:
        for x, a, b in zip(tensors, *sums, strict=True):
            x.copy_(a + b)

    for half in halves:
        found(half, mask, over_workers=keep)
    a, b = (found(half, mask, over_workers=add) for half in halves)
    want = found(whole, mask)
    torch.testing.assert_close(a.fit_R + b.fit_R, want.fit_R)
    torch.testing.assert_close(a.W_grad_cV + b.W_grad_cV, want.W_grad_cV)
    torch.testing.assert_close(a.variance_R, want.variance_R)


def test_on_a_device_the_same_numbers_without_waiting(counted: Any) -> None:
    case, mask = Case(60, 3, True, WIDTHS), randn(sum(WIDTHS), seed=50).sigmoid()
    want = found(case, mask, dtype=torch.float32)
    got = found(case, mask, "standin", torch.float32)
    assert counted.waits == 0
    for name, value in vars(want).items():
        torch.testing.assert_close(getattr(got, name).cpu(), value, rtol=1e-5, atol=1e-5)


def variance_of(content: list[torch.Tensor], pull: list[torch.Tensor]) -> torch.Tensor:
    gradient = torch.stack([u.T @ g for u, g in zip(content, pull, strict=True)])
    second = torch.stack([u.square().sum(1) @ g.square() for u, g in zip(content, pull, strict=True)])
    count = torch.tensor([len(u) for u in content], dtype=torch.float64)
    return environment_variance(gradient, second, count[:, None].expand_as(second))


def test_variance_is_the_deviation_less_the_sampling_noise() -> None:
    """Of the environments with two samples and more: the third and the fourth play no part."""
    content = [randn(n, 2, seed=n) for n in (5, 7, 1, 0)]
    pull = [randn(n, 3, seed=10 + n) + 4 * (n == 7) for n in (5, 7, 1, 0)]
    means, noise = [], torch.zeros(3, dtype=torch.float64)
    for u, g in zip(content[:2], pull[:2], strict=True):
        each = torch.stack([torch.outer(u[b], g[b]) for b in range(len(u))])
        means.append(each.mean(0))
        noise += each.var(0).sum(0) / len(u)
    middle = sum(means) / 2
    want = sum((m - middle).square().sum(0) for m in means) - noise / 2
    torch.testing.assert_close(variance_of(content, pull), want.clamp(min=0))


def test_variance_finds_the_dimension_that_differs() -> None:
    content = [randn(4000, 2, seed=s) + 1 for s in range(2)]
    pull = [randn(4000, 2, seed=s) for s in (5, 6)]
    pull[1][:, 1] += 1
    variance = variance_of(content, pull)
    assert variance[1] > 50 * variance[0]


def test_variance_of_one_environment_is_zero() -> None:
    assert variance_of([randn(4, 2), randn(1, 2)], [randn(4, 3), randn(1, 3)]).tolist() == [0, 0, 0]
