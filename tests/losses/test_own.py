"""UltraGCN's loss with negatives of every positive's own against a dense float64 computation, sample by sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_logistic import ALL, SOME, randn

from m3dist.losses.logistic import Coefficients, Samples
from m3dist.losses.own import ultragcn_own

SETTINGS = Coefficients(0.6, 4.0)


class Case:
    """Positives of which `there` [1, b] marks those that exist, n negatives each among R slots, s neighbours."""

    def __init__(self, M: int, there: torch.Tensor, n: int, R: int, s: int):
        P, b = there.shape
        X, generator = P * b, torch.Generator().manual_seed(7)
        self.user, self.item, self.slots = randn(M, P, b, 3), randn(M, (s + 1) * X, 3, seed=1), randn(M, R, 3, seed=2)
        self.at_Xn = torch.randint(R, (X, n), generator=generator)  # of few slots some are drawn twice
        positive, scale, weight, omega = (randn(*x, seed=3).abs() for x in ((P, b), (P, b), (X, n), (s, X)))
        share = there.double() / (2 * max(int(there.sum()), 1))
        self.samples = Samples(share, positive, 0.7, scale, weight, omega if s else None)

    def dense(self, user: torch.Tensor, item: torch.Tensor, slots: torch.Tensor) -> dict[str, torch.Tensor]:
        """Eq. 8, 10, 11 and 15 of UltraGCN."""
        samples, (X, n) = self.samples, self.at_Xn.shape
        u, own, far = user.flatten(1, 2), item[:, -X:], slots[:, self.at_Xn]
        share_X, score = samples.share_Pb.view(-1), (u[:, :, None] * far).sum(3)
        weight = samples.base + samples.scale_Pb.view(-1, 1) * samples.weight_PN
        out = {
            "positive": -(share_X * samples.positive_Pb.view(-1) * (u * own).sum(2).sigmoid().log()).sum(1),
            "negative": -4 * (share_X[:, None] * weight * (1 - score.sigmoid()).log() / n).sum((1, 2)),
        }
        if samples.omega_sX is not None:
            near = item[:, :-X].unflatten(1, (-1, X))
            out["neighbours"] = -0.6 * (share_X * samples.omega_sX * (u[:, None] * near).sum(3).sigmoid().log()).sum(
                (1, 2)
            )
        return out


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize("R", [4, 400])  # few slots, which are all scored, and many, of which the negatives alone are
@pytest.mark.parametrize(
    ("there", "n", "s"),
    [(ALL.view(1, -1), 3, 2), (SOME.view(1, -1), 5, 0), (torch.ones(1, 600, dtype=torch.bool), 3, 1)],
)
def test_value_and_gradients(M: int, R: int, there: torch.Tensor, n: int, s: int) -> None:
    """Of 600 users the scores are held in several blocks."""
    case = Case(M, there, n, R, s)
    leaves = [x.clone().requires_grad_() for x in (case.user, case.item, case.slots)]
    want = case.dense(*leaves)
    gradients = torch.autograd.grad(torch.stack([*want.values()]).sum(), leaves)
    found, slot_grad = ultragcn_own(case.user, case.item, (case.slots, case.at_Xn), case.samples, SETTINGS)
    assert found.terms.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found.terms[name], value.detach(), rtol=1e-9, atol=1e-12)
    for mine, theirs in zip((found.user_grad_MPbk, found.item_grad_MLk, slot_grad), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("R", [4, 400])
def test_on_a_device_the_same_numbers_without_waiting(counted: Any, R: int) -> None:
    case = Case(2, ALL.view(1, -1), 3, R, 1)

    def found(device: str) -> list[torch.Tensor]:
        user, item, slots = (x.float().to(device) for x in (case.user, case.item, case.slots))
        moved = {k: x.float().to(device) for k, x in vars(case.samples).items() if isinstance(x, torch.Tensor)}
        samples, at_Xn = replace(case.samples, **moved), case.at_Xn.to(device)
        counted.clear()
        out, slot_grad = ultragcn_own(user, item, (slots, at_Xn), samples, SETTINGS)
        assert (counted.waits, counted.copies) == (0, 0)
        return [x.cpu() for x in (*out.terms.values(), out.user_grad_MPbk, out.item_grad_MLk, slot_grad)]

    for here, there in zip(found("cpu"), found("standin"), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
