"""Stage 1's contrast against hand values and, with masks and anchors, against float64 loops over pairs of items."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.standin import Counted
from m3dist.losses.contrastive import Anchors, contrastive

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
    value = contrastive(z, 7 * z[0], torch.ones(1, 2), tau, Anchors(0, 2))
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
    got = contrastive(given[0], given[1], valid, given[2], Anchors(*bounds))
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
        value = contrastive(z, common, valid, tau, Anchors(*bounds))
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
    value = contrastive(given[0], given[1], valid, given[2], Anchors(0, 6))
    for x in (value, *torch.autograd.grad(value, given)):
        assert torch.isfinite(x).all()


def test_on_a_device_the_same_numbers_without_waiting(counted: Counted) -> None:
    def found(device: str) -> list[torch.Tensor]:
        z, common = (x.to(device) for x in (randn(3, 7, 4), randn(7, 4, seed=1)))
        tau, valid = torch.full((), 0.4, device=device), some(3, 7).to(device)
        inputs, anchors = [x.requires_grad_() for x in (z, common, tau)], Anchors(2, 6)
        counted.clear()
        value = contrastive(z, common, valid, tau, anchors)
        assert (counted.waits, counted.copies) == (0, 0)
        assert counted.launches <= 65
        gradients = torch.autograd.grad(value, inputs)
        assert (counted.waits, counted.copies) == (0, 0)
        return [x.detach().cpu() for x in (value, *gradients)]

    for here, there in zip(found("cpu"), found("standin"), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
