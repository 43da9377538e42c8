"""The losses against hand values, float64 loops and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from m3dist import losses
from m3dist.losses import Negatives, Positives, Projection


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("parts", [(4,), (700,), (3, 0, 9)])
def test_ultragcn_value_and_gradients(parts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd on a dense computation; 700 rows are more than one block, and rows repeat."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))  # nothing is left unwritten
    d, N, s, R = 3, 5, 2, 9
    b, J = sum(parts), N * len(parts)
    group = torch.arange(len(parts)).repeat_interleave(torch.tensor(parts))
    user, item = randn(R, d).requires_grad_(), randn(R, d, seed=1).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    user_at, item_at, negative_at = (torch.randint(R, (n,), generator=generator) for n in (b, b, J))
    near_at = torch.randint(R, (b, s), generator=generator)
    weight, scale, weight_J, omega = (randn(*n, seed=3).abs() for n in ((b,), (b,), (J,), (b, s)))
    l2 = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    u, v, near = user[user_at], item[item_at], item[near_at]
    far, far_weight = item[negative_at].view(-1, N, d)[group], weight_J.view(-1, N)[group]
    soft = torch.nn.functional.softplus
    squares = u.square().sum(0) / (2 * b) + v.square().sum(0) / (2 * b) + far.square().mean((0, 1)) / 2
    want = {
        "positive": (weight * soft(-(u * v).sum(1))).sum() / (2 * b),
        "negative": 4 * ((0.7 + scale[:, None] * far_weight) * soft((u[:, None] * far).sum(2))).sum() / (2 * b * N),
        "neighbours": 0.6 * (omega * soft(-(u[:, None] * near).sum(2))).sum() / (2 * b),
        "l2": (l2 * squares).sum(),
    }
    at = losses.Sampled(
        user_at, item_at, negative_at, weight, 0.7, scale, weight_J, near_at, omega, 0.6, 4.0, l2, 2 * b, parts
    )
    got, *gradients = losses.ultragcn(user.detach(), item.detach(), at)
    assert {name: float(x) for name, x in got.items()} == pytest.approx({k: float(x.detach()) for k, x in want.items()})
    for mine, theirs in zip(gradients, torch.autograd.grad(sum(want.values()), [user, item]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_contrastive_is_eq_2_to_4() -> None:
    z, common, tau = randn(5, 3), randn(5, 3, seed=1), torch.tensor(0.5, dtype=torch.float64)

    def s(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(float(a @ b / a.norm() / b.norm()) / 0.5)

    total = 0.0
    for i in range(5):
        omega = sum(s(z[i], common[j]) + s(z[i], z[j]) + s(common[i], common[j]) for j in range(5) if j != i)
        total -= math.log(s(z[i], common[i]) / omega)
    assert float(losses.contrastive(z, common, tau, (0, 5))) == pytest.approx(total, rel=1e-12)
    halves = [losses.contrastive(z, common, tau, (a, b)) for a, b in ((0, 2), (2, 5))]
    assert float(sum(halves)) == pytest.approx(total, rel=1e-12)


def test_club_is_the_mean_over_pairs() -> None:
    v, mean, logvar = randn(6, 2), randn(6, 2, seed=1), randn(6, 2, seed=2)

    def log_q(i: int, j: int) -> float:
        return float(-0.5 * ((v[j] - mean[i]) ** 2 * torch.exp(-logvar[i]) + logvar[i]).sum())

    want = sum(log_q(i, i) - sum(log_q(i, j) for j in range(6)) / 6 for i in range(6))
    assert float(losses.club(v, mean, logvar, v)) == pytest.approx(want, rel=1e-10)


def test_club_bounds_the_information_of_gaussians_from_above() -> None:
    rho, n = 0.7, 200_000
    z = randn(n, 1)
    v = rho * z + math.sqrt(1 - rho**2) * randn(n, 1, seed=1)
    logvar = torch.full_like(z, math.log(1 - rho**2))
    bound = float(losses.club(v, rho * z, logvar, v)) / n
    truth = -0.5 * math.log(1 - rho**2)
    assert truth < bound < 3.5 * truth


def moments(content: list[torch.Tensor], pull: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradient = torch.stack([u.T @ g for u, g in zip(content, pull, strict=True)])
    second = torch.stack([u.square().sum(1) @ g.square() for u, g in zip(content, pull, strict=True)])
    return gradient, second, torch.tensor([len(u) for u in content], dtype=torch.float64)


def test_environment_variance_is_the_deviation_less_the_sampling_noise() -> None:
    content, pull = [randn(5, 2), randn(7, 2, seed=1)], [randn(5, 3, seed=2), randn(7, 3, seed=3) + 4]
    means, noise = [], torch.zeros(3, dtype=torch.float64)
    for u, g in zip(content, pull, strict=True):
        samples = torch.stack([torch.outer(u[b], g[b]) for b in range(len(u))])
        means.append(samples.mean(0))
        noise += samples.var(0).sum(0) / len(u)
    middle = sum(means) / 2
    want = sum((m - middle).square().sum(0) for m in means) - noise / 2
    torch.testing.assert_close(losses.environment_variance(*moments(content, pull)), want.clamp(min=0))


def test_environment_variance_finds_the_dimension_that_differs() -> None:
    content = [randn(4000, 2, seed=s) + 1 for s in range(2)]
    pull = [randn(4000, 2, seed=s) for s in (5, 6)]
    pull[1][:, 1] += 1
    variance = losses.environment_variance(*moments(content, pull))
    assert variance[1] > 50 * variance[0]


@pytest.mark.parametrize("b", [3, 600])
def test_projection_fit_against_autograd(b: int) -> None:
    """Value, gradients and second moments; 600 rows are more than one block."""
    d, c, D, N = 3, 2, 4, 5
    user, own, x = randn(b, d + c) * 3, randn(b, d, seed=1), randn(b, D, seed=2)
    negative, x_N = randn(N, d, seed=3), randn(N, D, seed=4)
    weight, scale, weight_N = (randn(n, seed=5 + n).abs() for n in (b, b, N))
    W, bias = randn(c, D, seed=8).requires_grad_(), randn(c, seed=9).requires_grad_()

    def rows_loss(i: int) -> torch.Tensor:
        score = user[i, :d] @ own[i] + user[i, d:] @ (W @ x[i] + bias)
        others = negative @ user[i, :d] + (x_N @ W.T + bias) @ user[i, d:]
        negatives = ((0.7 + scale[i] * weight_N) * torch.nn.functional.softplus(others)).sum()
        return negatives + weight[i] * torch.nn.functional.softplus(-score)

    cut = b // 3  # two groups under one model, and under a model each
    rows, groups = [cut, b - cut], [slice(0, cut), slice(cut, b)]
    score, own_score = user[:, :d] @ negative.T, (user[:, :d] * own).sum(1)
    positives = Positives(score.clone(), own_score, user[:, d:].contiguous(), x, weight, scale)
    negatives = Negatives(x_N, weight_N, 0.7)
    first = Projection(W.detach()[None], bias.detach()[None])
    one = losses.projection_fits(positives, negatives, rows, first, moments=True)
    both = Projection(torch.cat([2 * first.W, first.W]), first.bias.expand(2, -1))
    two = losses.projection_fits(positives._replace(score_bN=score), negatives, rows, both, moments=True)
    wants = [rows_loss(i) for i in range(b)]
    for g, fits in ((0, one), (1, one), (1, two)):
        mine = wants[groups[g]]
        assert fits.rows[g] == len(mine)
        assert float(fits.loss_G[g]) == pytest.approx(float(sum(mine).detach()), rel=1e-9)
        gradients = torch.autograd.grad(sum(mine), [W, bias], retain_graph=True)
        for got, want in zip((fits.gradient_GcD[g], fits.bias_Gc[g]), gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        second = sum(torch.autograd.grad(part, W, retain_graph=True)[0].square().sum(0) for part in mine)
        torch.testing.assert_close(fits.second_GD[g], second, rtol=1e-9, atol=1e-9)
    assert float((two.gradient_GcD[0] - one.gradient_GcD[0]).abs().max()) > 1e-3


def test_projection_fit_of_no_rows_is_zero() -> None:
    one, two = torch.ones(2, 1), torch.ones(2)
    positives = Positives(torch.zeros(2, 1), torch.zeros(2), one, one, two, two)
    W, bias = torch.full((3, 1, 1), torch.nan), torch.full((3, 1), torch.nan)
    W[1], bias[1] = 1, 1
    fits = losses.projection_fits(
        positives, Negatives(torch.ones(1, 1), torch.ones(1), 1.0), [0, 2, 0], Projection(W, bias), True
    )
    for part in (fits.loss_G, fits.gradient_GcD, fits.bias_Gc, fits.second_GD):
        assert part is not None
        assert part[[0, 2]].count_nonzero() == 0
        assert part[1].isfinite().all()


def test_projection_fit_of_extreme_scores_is_finite() -> None:
    user = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    one, two = torch.ones(2, 1), torch.ones(2)
    score = user[:, :1] @ torch.ones(1, 1)
    positives = Positives(score, user[:, 0], user[:, 1:].contiguous(), one, two, two)
    negatives, projection = (
        Negatives(torch.ones(1, 1), torch.ones(1), 1.0),
        Projection(torch.ones(1, 1, 1), torch.zeros(1, 1)),
    )
    fits = losses.projection_fits(positives, negatives, [2], projection, moments=True)
    assert float(fits.loss_G) == pytest.approx(2 * 1000 + 1000, rel=1e-6)
    assert all(part is not None and part.isfinite().all() for part in fits[1:])


def test_known_gradients_reach_their_inputs() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    (2 * losses.known(torch.tensor(5.0), [a, b], [torch.arange(2.0), torch.arange(3.0)])).backward()
    assert a.grad.tolist() == [0, 2]
    assert b.grad.tolist() == [0, 2, 4]
