"""Stage 1's losses against hand values and, with masks and anchors, against float64 loops over pairs of items."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from benchmarks.standin import Counted
from m3dist.losses.contrastive import Anchors, ClubSamples, club, contrastive

WIDTHS = (3, 5, 2)  # of v of three modalities
CLOSE = {"rtol": 2e-5, "atol": 2e-6}  # float32 against float64


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some(M: int, C: int) -> torch.Tensor:
    """Which items have a modality: most of them; of the last, where there are several, the first alone."""
    valid = (torch.rand(M, C, generator=torch.Generator().manual_seed(3)) < 0.7).float()
    if M > 1:
        valid[-1] = 0
        valid[-1, :1] = 1
    return valid


def anchors_of(C: int, bounds: tuple[int, int]) -> Anchors:
    return Anchors(C, bounds, torch.device("cpu"))


def eq_2_to_4(
    z_MCD: torch.Tensor, common_CD: torch.Tensor, valid_MC: torch.Tensor, tau: torch.Tensor, bounds: tuple[int, int]
) -> torch.Tensor:
    """The loss of the anchors in `bounds`, pair by pair."""
    total, common = 0.0 * (z_MCD.sum() + common_CD.sum() + tau), F.normalize(common_CD, dim=1)
    for z_CD, valid_C in zip(F.normalize(z_MCD, dim=2), valid_MC, strict=True):
        items = valid_C.nonzero().squeeze(1).tolist()
        for i in items if len(items) > 1 else []:
            if not bounds[0] <= i < bounds[1]:
                continue
            omega = sum(
                torch.exp(a @ b / tau)
                for j in items if j != i
                for a, b in ((z_CD[i], common[j]), (z_CD[i], z_CD[j]), (common[i], common[j]))
            )  # fmt: skip
            total = total - torch.log(torch.exp(z_CD[i] @ common[i] / tau) / omega) / len(items)
    return total


def test_contrast_of_two_orthogonal_items() -> None:
    """The positive's cosine is 1 and the three negatives' are 0, for each of both items, whatever their lengths."""
    z = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    tau = torch.tensor(0.5)
    value = contrastive(z, 7 * z[0], torch.ones(1, 2), tau, anchors_of(2, (0, 2)))
    assert float(value) == pytest.approx(-math.log(math.exp(1 / 0.5) / 3), rel=1e-6)


@pytest.mark.parametrize(
    ("M", "C", "bounds"),
    [(1, 5, (0, 5)), (3, 7, (0, 7)), (3, 7, (2, 5)), (3, 7, (4, 4)), (2, 1, (0, 1)), (2, 6, (5, 6))],
)
def test_contrast_is_eq_2_to_4(M: int, C: int, bounds: tuple[int, int]) -> None:
    """With its gradients of z, z_{M+1} and tau; a modality of one item has neither."""
    given = [randn(M, C, 4), randn(C, 4, seed=1), torch.tensor(0.4)]
    valid = some(M, C)
    doubles = [x.double().requires_grad_() for x in given]
    want = eq_2_to_4(doubles[0], doubles[1], valid, doubles[2], bounds)
    for x in given:
        x.requires_grad_()
    got = contrastive(given[0], given[1], valid, given[2], anchors_of(C, bounds))
    torch.testing.assert_close(got.double(), want, **CLOSE)
    gradients = zip(torch.autograd.grad(got, given), torch.autograd.grad(want, doubles), strict=True)
    for mine, theirs in gradients:
        torch.testing.assert_close(mine.double(), theirs, **CLOSE)


@pytest.mark.parametrize("cuts", [(0, 4, 7), (0, 1, 1, 6, 7)])
def test_workers_anchors_add_up(cuts: tuple[int, ...]) -> None:
    given = [randn(3, 7, 4).requires_grad_(), randn(7, 4, seed=1).requires_grad_(), torch.tensor(0.4).requires_grad_()]
    z, common, tau = given
    valid = some(3, 7)

    def found(bounds: tuple[int, int]) -> list[torch.Tensor]:
        value = contrastive(z, common, valid, tau, anchors_of(7, bounds))
        return [value.detach(), *torch.autograd.grad(value, given)]

    whole, parts = found((0, 7)), [found(bounds) for bounds in itertools.pairwise(cuts)]
    for want, *mine in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.stack(mine).sum(0), want, **CLOSE)


def test_contrast_of_cold_temperatures_and_rows_of_zeros_is_finite() -> None:
    """An item without the modality may have a row of zeros."""
    z, common = randn(2, 6, 4), randn(6, 4, seed=1)
    z[:, 2] = 0
    valid = torch.ones(2, 6)
    valid[:, 2] = 0
    given = [z.requires_grad_(), common.requires_grad_(), torch.tensor(0.05).requires_grad_()]
    value = contrastive(given[0], given[1], valid, given[2], anchors_of(6, (0, 6)))
    for x in (value, *torch.autograd.grad(value, given)):
        assert torch.isfinite(x).all()


def q_of(D: int = 4, H: int = 6, widths: Sequence[int] = WIDTHS) -> list[torch.Tensor]:
    """Parameters of q of every modality, side by side; columns behind a narrower one's are noise."""
    M, w = len(widths), max(widths)
    shapes = ((M, D, H), (M, 1, H), (M, H, 2 * w), (M, 1, 2 * w))
    return [0.6 * randn(*shape, seed=20 + at) for at, shape in enumerate(shapes)]


def samples_of(v: list[torch.Tensor], z: torch.Tensor, valid: torch.Tensor, bounds: tuple[int, int]) -> ClubSamples:
    w = max(x.shape[1] for x in v)
    wide = torch.stack([(torch.arange(w) < x.shape[1]).to(z.dtype) for x in v])
    return ClubSamples(torch.stack([F.pad(x, (0, w - x.shape[1])) for x in v]), z, valid, wide, bounds)


def by_pairs(samples: ClubSamples, q: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds [M] and -log q, from log q(v_j|z_i) of every pair."""
    (hidden, hidden_bias, out, out_bias), w = q, samples.v_MCw.shape[2]
    nothing = 0 * (samples.z_MCD.sum() + samples.v_MCw.sum())
    bounds, likelihood = [], sum((0 * x.sum() for x in q), nothing)
    for m, wide_w in enumerate(samples.wide_Mw.bool()):
        h = torch.relu(samples.z_MCD[m] @ hidden[m] + hidden_bias[m])
        mean, raw = (h @ out[m] + out_bias[m]).split(w, dim=1)
        v, mean, logvar = (x[:, wide_w] for x in (samples.v_MCw[m], mean, 5 * raw.tanh()))
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
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


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
    q = [torch.tensor(x) for x in ([[[1.0, -1.0]]], [[[0.0, 0.0]]], [[[rho, 0], [-rho, 0]]], [[[0.0, raw]]])]
    bounds_M, nll = club(samples_of([v], z[None], torch.ones(1, n), (0, n)), q)
    truth = -0.5 * math.log(1 - rho**2)
    assert truth < float(bounds_M) < 3.5 * truth
    assert float(nll) == pytest.approx(0.5 * (1 + math.log(2 * math.pi * (1 - rho**2))), abs=0.01)  # the entropy


def test_on_a_device_the_same_numbers_without_waiting(counted: Counted) -> None:
    def found(device: str) -> list[torch.Tensor]:
        z, common, *v = (x.to(device) for x in (randn(3, 7, 4), randn(7, 4, seed=1), *(randn(7, w) for w in WIDTHS)))
        tau, valid, q = torch.full((), 0.4, device=device), some(3, 7).to(device), [x.to(device) for x in q_of()]
        inputs = [x.requires_grad_() for x in (z, common, tau, *v, *q)]
        samples = samples_of([x.cpu() for x in v], z.cpu(), valid.cpu(), (2, 6))
        wide, anchors = samples.wide_Mw.to(device), Anchors(7, (2, 6), torch.device(device))
        stacked = torch.stack([F.pad(x, (0, 5 - x.shape[1])) for x in v])
        counted.clear()
        bounds_M, nll = club(ClubSamples(stacked, z, valid, wide, (2, 6)), q)
        com = contrastive(z, common, valid, tau, anchors)
        assert (counted.waits, counted.copies) == (0, 0)
        assert counted.launches <= 130
        gradients = torch.autograd.grad(com + bounds_M.sum() + nll, inputs)
        assert (counted.waits, counted.copies) == (0, 0)
        return [x.detach().cpu() for x in (com, bounds_M, nll, *gradients)]

    for here, there in zip(found("cpu"), found("standin"), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
