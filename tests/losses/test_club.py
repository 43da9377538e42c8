"""CLUB against float64 loops over pairs of items, with masks and anchors, and where its bound is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from benchmarks.standin import Counted
from m3dist.losses.club import Samples, club
from m3dist.losses.masks import Columns

WIDTHS = (3, 5, 2)  # of v of three modalities
CLOSE = {"rtol": 2e-5, "atol": 2e-6}  # float32 against float64


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some(M: int, C: int) -> torch.Tensor:
    """Which items have a modality: most of them; of the last the first alone."""
    valid = (torch.rand(M, C, generator=torch.Generator().manual_seed(3)) < 0.7).float()
    valid[-1] = 0
    valid[-1, :1] = 1
    return valid


def q_of(D: int = 4, H: int = 6, widths: Sequence[int] = WIDTHS) -> list[torch.Tensor]:
    """Parameters of q: hidden and its bias of every modality, out and its bias of all columns."""
    M, W = len(widths), sum(widths)
    shapes = ((M, D, H), (M, 1, H), (2, H, W), (2, 1, W))
    return [0.6 * randn(*shape, seed=20 + at) for at, shape in enumerate(shapes)]


def samples_of(v: list[torch.Tensor], z: torch.Tensor, valid: torch.Tensor, bounds: tuple[int, int]) -> Samples:
    columns = Columns([x.shape[1] for x in v], z.device)
    return Samples(torch.cat(v, dim=1), z, valid, columns, bounds)


def by_pairs(samples: Samples, q: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds [M] and -log q, from log q(v_j|z_i) of every pair."""
    (hidden, hidden_bias, *out), widths = q, samples.columns.widths
    nothing = 0 * (samples.z_MCD.sum() + samples.v_CW.sum())
    bounds, likelihood = [], sum((0 * x.sum() for x in q), nothing)
    each = zip(samples.v_CW.split(widths, 1), *(x.split(widths, 2) for x in out), strict=True)
    for m, (v, weight, bias) in enumerate(each):
        h = torch.relu(samples.z_MCD[m] @ hidden[m] + hidden_bias[m])
        mean, raw = h @ weight + bias
        logvar = 5 * raw.tanh()
        items, bound = samples.valid_MC[m].nonzero().squeeze(1).tolist(), nothing
        for i in items:
            if samples.bounds[0] <= i < samples.bounds[1]:
                log = {
                    j: -0.5 * ((v[j] - mean[i]) ** 2 / logvar[i].exp() + logvar[i] + math.log(2 * math.pi)).sum()
                    for j in items
                }
                bound = bound + (log[i] - sum(log.values()) / len(items)) / len(items)
                likelihood = likelihood - log[i] / len(items)
        bounds.append(bound)
    return torch.stack(bounds), likelihood


@pytest.mark.parametrize(("C", "bounds"), [(9, (0, 9)), (9, (2, 5)), (9, (3, 3)), (1, (0, 1))])
def test_club_is_the_mean_over_pairs(C: int, bounds: tuple[int, int]) -> None:
    """Eq. 6 with its gradients of v and z, whatever a modality's bound counts for; and the fit of q."""
    valid, weight_M = some(3, C), torch.tensor([1.0, 0.5, 2.0])
    v, z, q = [randn(C, w, seed=5 + w) for w in WIDTHS], randn(3, C, 4, seed=4), q_of()
    many = [[x.clone().to(dtype).requires_grad_() for x in (z, *v, *q)] for dtype in (torch.float32, torch.float64)]
    (mine, theirs), found = many, []
    for of, given in ((club, mine), (by_pairs, theirs)):
        samples = samples_of(given[1:4], given[0], valid.to(given[0].dtype), bounds)
        found.append(of(samples, given[4:]))
    (bounds_M, nll), (want_M, want) = found
    torch.testing.assert_close(bounds_M.double(), want_M, rtol=2e-5, atol=5e-5)  # a difference of larger numbers
    torch.testing.assert_close(nll.double(), want, **CLOSE)
    ours = torch.autograd.grad((bounds_M * weight_M).sum(), mine[:4], retain_graph=True)
    other = torch.autograd.grad((want_M * weight_M).sum(), theirs[:4], retain_graph=True)
    ours += torch.autograd.grad(nll, mine[4:])
    other += torch.autograd.grad(want, theirs[4:])
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6 * float(b.abs().max().clamp(min=10)))


def test_the_bounds_leave_q_alone_and_the_fit_of_q_leaves_v_and_z() -> None:
    v, z, q = [randn(6, w, seed=w).requires_grad_() for w in WIDTHS], randn(3, 6, 4).requires_grad_(), q_of()
    for x in q:
        x.requires_grad_()
    bounds_M, nll = club(samples_of(v, z, torch.ones(3, 6), (0, 6)), q)
    assert torch.autograd.grad(bounds_M.sum(), q, allow_unused=True, retain_graph=True) == (None,) * 4
    assert torch.autograd.grad(nll, [*v, z], allow_unused=True) == (None,) * 4


def test_workers_shares_of_club_add_up() -> None:
    v, z, q = [randn(7, w, seed=w).requires_grad_() for w in WIDTHS], randn(3, 7, 4).requires_grad_(), q_of()
    for x in q:
        x.requires_grad_()

    def found(bounds: tuple[int, int]) -> list[torch.Tensor]:
        bounds_M, nll = club(samples_of(v, z, some(3, 7), bounds), q)
        gradients = torch.autograd.grad(bounds_M.sum() + nll, [*v, z, *q])
        return [bounds_M.detach(), nll.detach(), *gradients]

    whole, parts = found((0, 7)), [found(bounds) for bounds in ((0, 3), (3, 3), (3, 7))]
    for want, *mine in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.stack(mine).sum(0), want, rtol=1e-4, atol=1e-5)


def test_club_bounds_the_information_of_gaussians_from_above() -> None:
    """q is the true conditional: its mean is rho z, which relu(z) - relu(-z) makes, and its variance 1 - rho^2."""
    rho, n = 0.7, 200_000
    z = randn(n, 1)
    v = rho * z + math.sqrt(1 - rho**2) * randn(n, 1, seed=1)
    raw = math.atanh(math.log(1 - rho**2) / 5)
    q = [
        torch.tensor(x)
        for x in ([[[1.0, -1.0]]], [[[0.0, 0.0]]], [[[rho], [-rho]], [[0.0], [0.0]]], [[[0.0]], [[raw]]])
    ]
    bounds_M, nll = club(samples_of([v], z[None], torch.ones(1, n), (0, n)), q)
    truth = -0.5 * math.log(1 - rho**2)
    assert truth < float(bounds_M) < 3.5 * truth
    assert float(nll) == pytest.approx(0.5 * (1 + math.log(2 * math.pi * (1 - rho**2))), abs=0.01)  # the entropy


def test_v_that_is_not_trained_needs_no_gradient() -> None:
    v, z, q = [randn(6, w, seed=w) for w in WIDTHS], randn(3, 6, 4), q_of()
    found = []
    for trained in (False, True):
        given = [z.clone().requires_grad_(), *(x.clone().requires_grad_(trained) for x in v)]
        bounds_M, _ = club(samples_of(given[1:], given[0], some(3, 6), (0, 6)), q)
        found.append(torch.autograd.grad(bounds_M.sum(), given[0])[0])
    assert torch.equal(*found)


def test_on_a_device_the_same_numbers_without_waiting(counted: Counted) -> None:
    def found(device: str) -> list[torch.Tensor]:
        z, valid, *v = (x.to(device) for x in (randn(3, 7, 4), some(3, 7), *(randn(7, w) for w in WIDTHS)))
        q = [x.to(device) for x in q_of()]
        inputs = [x.requires_grad_() for x in (z, *v, *q)]
        samples = samples_of(v, z, valid, (2, 6))
        counted.clear()
        bounds_M, nll = club(samples, q)
        assert (counted.waits, counted.copies) == (0, 0)
        assert counted.launches <= 80
        gradients = torch.autograd.grad(bounds_M.sum() + nll, inputs)
        assert (counted.waits, counted.copies) == (0, 0)
        return [x.detach().cpu() for x in (bounds_M, nll, *gradients)]

    for here, there in zip(found("cpu"), found("standin"), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
