"""Stage 1's losses against autograd on loops over samples, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from m3dist.losses.alignment import Anchors, Club, Contrast, Gaussians, club, club_with_v, contrastive

WIDTHS = [3, 2, 1]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def valid(M: int, C: int) -> torch.Tensor:
    """Most items; of the last modality one at most, so that it has no negatives."""
    out = (torch.rand(M, C, generator=torch.Generator().manual_seed(3)) < 0.7).double()
    if M > 1:
        out[-1] = 0
        out[-1, :1] = 1
    return out


def eq_2_to_4(x: torch.Tensor, tau: torch.Tensor, valid_MC: torch.Tensor, rows: slice) -> torch.Tensor:
    """The loss [M], anchor by anchor."""
    *z, common = F.normalize(x, dim=2)
    out = []
    for z_m, there in zip(z, valid_MC.bool(), strict=True):
        total, items = x.sum() * 0, there.nonzero().squeeze(1).tolist()
        for i in items if len(items) > 1 else []:
            if not rows.start <= i < rows.stop:
                continue
            omega = sum(
                torch.exp(a @ b / tau)
                for j in items if j != i
                for a, b in ((z_m[i], common[j]), (z_m[i], z_m[j]), (common[i], common[j]))
            )  # fmt: skip
            total = total - torch.log(torch.exp(z_m[i] @ common[i] / tau) / omega) / len(items)
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("M", "C", "start", "count"), [(1, 5, 0, 5), (3, 7, 0, 7), (3, 7, 2, 3), (2, 1, 0, 1), (2, 6, 5, 1)]
)
def test_contrastive_is_eq_2_to_4(M: int, C: int, start: int, count: int) -> None:
    x = randn(M + 1, C, 4).requires_grad_()
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    anchors = Anchors(valid(M, C), start, count)
    want = eq_2_to_4(x, tau, anchors.valid_MC, anchors.rows)
    found = contrastive(x.detach(), tau.detach(), anchors)
    torch.testing.assert_close(found.loss_M, want.detach(), rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(want.sum(), [x, tau], allow_unused=True)
    for mine, theirs in zip((found.x_grad_SCD, found.tau_grad), gradients, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-9, atol=1e-12)


def test_workers_anchors_add_up() -> None:
    x, tau, there = randn(4, 7, 4), torch.tensor(0.5, dtype=torch.float64), valid(3, 7)
    whole = contrastive(x, tau, Anchors(there, 0, 7))
    parts = [contrastive(x, tau, Anchors(there, start, count)) for start, count in ((0, 4), (4, 3))]
    torch.testing.assert_close(parts[0].loss_M + parts[1].loss_M, whole.loss_M)
    torch.testing.assert_close(parts[0].x_grad_SCD + parts[1].x_grad_SCD, whole.x_grad_SCD)


def gaussians(dtype: torch.dtype = torch.float64, D: int = 4, H: int = 5) -> Gaussians:
    M = len(WIDTHS)
    hidden = (randn(M, H, D, seed=1).to(dtype), randn(M, H, seed=2).to(dtype))
    pairs = [
        [
            (randn(d, H, seed=k + 10 * m).to(dtype) / 3, randn(d, seed=k + 20 * m).to(dtype))
            for m, d in enumerate(WIDTHS)
        ]
        for k in (3, 4)
    ]
    return Gaussians(hidden, *pairs)


def flat(q: Gaussians) -> list[torch.Tensor]:
    return [*q.hidden, *(x for pair in (*q.mean, *q.logvar) for x in pair)]


def by_pairs(
    z: torch.Tensor, v: torch.Tensor, q: Gaussians, anchors: Anchors
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Bound and negative log likelihood of each modality: log q(v_j|z_i) of every pair."""
    bounds, likelihoods = [], []
    for m, (v_m, there) in enumerate(zip(v.split(WIDTHS, dim=1), anchors.valid_MC.bool(), strict=True)):
        h = F.relu(z[m] @ q.hidden[0][m].T + q.hidden[1][m])
        mean, logvar = h @ q.mean[m][0].T + q.mean[m][1], 5 * torch.tanh(h @ q.logvar[m][0].T + q.logvar[m][1])
        items = there.nonzero().squeeze(1).tolist()
        bound, likelihood = z.sum() * 0, z.sum() * 0
        for i in items:
            if i in range(anchors.start, anchors.start + anchors.count):
                at = i - anchors.start
                log = {
                    j: -0.5 * ((v_m[j] - mean[at]) ** 2 / logvar[at].exp() + logvar[at] + math.log(2 * math.pi)).sum()
                    for j in items
                }
                bound = bound + (log[i] - sum(log.values()) / len(items)) / len(items)
                likelihood = likelihood - log[i] / len(items)
        bounds.append(bound)
        likelihoods.append(likelihood)
    return bounds, likelihoods


@pytest.mark.parametrize(("C", "start", "count"), [(6, 0, 6), (6, 2, 3), (1, 0, 1)])
@pytest.mark.parametrize("learned", [False, True])
def test_club_and_the_fit_of_q(C: int, start: int, count: int, learned: bool) -> None:
    """The bound holds q fixed, the likelihood v and z; a negative bound has neither value nor gradient."""
    q, z, v = gaussians(), randn(3, count, 4, seed=5).requires_grad_(), randn(C, 6, seed=6).requires_grad_()
    anchors = Anchors(valid(3, C), start, count)
    bounds, likelihoods = by_pairs(z, v, q, anchors)
    kept = [x for x in bounds if x > 0]
    if C > 1:
        assert 0 < len(kept) < 3
    found = (club_with_v if learned else club)(z.detach(), v.detach(), q, anchors)
    torch.testing.assert_close(found.bound, sum(kept, z.sum() * 0).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.likelihood, sum(likelihoods).detach(), rtol=1e-9, atol=1e-12)
    of_z, of_v = torch.autograd.grad(sum(kept, (z.sum() + v.sum()) * 0), [z, v])
    torch.testing.assert_close(found.z_grad_McD, of_z, rtol=1e-9, atol=1e-12)
    if learned:
        torch.testing.assert_close(found.v_grad_CV, of_v, rtol=1e-9, atol=1e-12)
    else:
        assert found.v_grad_CV is None
    parameters = [x.requires_grad_() for x in flat(q)]
    _, likelihoods = by_pairs(z.detach(), v.detach(), q, anchors)
    of_q = torch.autograd.grad(sum(likelihoods), parameters, allow_unused=True)
    for mine, theirs in zip(flat(found.q_grad), of_q, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-9, atol=1e-12)


def test_bounds_count_by_their_sum_over_workers() -> None:
    q, v, anchors = gaussians(), randn(6, 6, seed=6), Anchors(valid(3, 6), 0, 6)
    z = randn(3, 6, 4, seed=5)
    none = club(z, v, q, anchors, lambda bound_M: bound_M - 1e9)
    every = club(z, v, q, anchors, lambda bound_M: bound_M + 1e9)
    assert float(none.bound) == 0
    assert none.z_grad_McD.count_nonzero() == 0
    assert float(every.bound) == pytest.approx(sum(float(x) for x in by_pairs(z, v, q, anchors)[0]), rel=1e-9)
    torch.testing.assert_close(none.q_grad.hidden, every.q_grad.hidden)


def test_on_a_device_the_same_numbers_without_waiting(counted: Any) -> None:
    x, v, q = randn(4, 7, 4).float(), randn(7, 6, seed=6).float(), gaussians(torch.float32)
    tau, there = torch.tensor(0.5), valid(3, 7).float()

    def both(device: str) -> tuple[Contrast, Club]:
        def put(pair: tuple[torch.Tensor, ...]) -> Any:
            return tuple(x.to(device) for x in pair)

        theirs = Gaussians(put(q.hidden), [put(pair) for pair in q.mean], [put(pair) for pair in q.logvar])
        rows, anchors, rate, values = x.to(device), Anchors(there.to(device), 1, 5), tau.to(device), v.to(device)
        counted.clear()
        return contrastive(rows, rate, anchors), club_with_v(rows[:3, 1:6], values, theirs, anchors)

    want = both("cpu")
    got = both("standin")
    assert (counted.waits, counted.copies) == (0, 0)
    assert counted.launches <= 150

    def numbers(found: tuple[Contrast, Club]) -> list[torch.Tensor]:
        a, b = found
        assert b.v_grad_CV is not None
        return [a.loss_M, a.x_grad_SCD, a.tau_grad, b.bound, b.likelihood, b.z_grad_McD, b.v_grad_CV, *flat(b.q_grad)]

    for mine, theirs in zip(numbers(got), numbers(want), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-6, atol=1e-6)
