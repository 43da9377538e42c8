"""The softmax of cosines against autograd on a dense float64 computation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_logistic import ALL, PARTS, SOME, floats, step

from m3dist.losses.logistic import Coefficients, Samples
from m3dist.losses.softmax import COLDEST, softmax

SETTINGS = Coefficients(0.6, 4.0)


def dense(user: torch.Tensor, item: torch.Tensor, samples: Samples, tau: float) -> dict[str, torch.Tensor]:
    """The loss sample by sample, as torch's cross entropy has it, and L_I (eq. 15 of UltraGCN)."""
    M, P, b, k = user.shape
    X, N = P * b, samples.weight_PN.shape[1]
    s = 0 if samples.omega_sX is None else len(samples.omega_sX)
    near, own, far = item.split([s * X, X, P * N], dim=1)
    rows = (user, own.view(M, P, b, k), far.view(M, P, 1, N, k))
    u, v, w = (x / (x.square().sum(-1, keepdim=True) + 1e-8).sqrt() for x in rows)
    score = torch.cat([(u * v).sum(3, keepdim=True), (u[:, :, :, None] * w).sum(4)], 3) / tau
    each = -score.log_softmax(3)[..., 0]
    out = {"softmax": (samples.share_Pb * samples.positive_Pb * each).sum((1, 2))}
    if samples.omega_sX is not None:
        weight = samples.share_Pb * samples.omega_sX.view(s, P, b)
        product = (user[:, None] * near.view(M, s, P, b, k)).sum(4)
        out["neighbours"] = -0.6 * (weight * product.sigmoid().log()).sum((1, 2, 3))
    return out


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize(
    ("there", "N", "s", "tau"),
    [
        (ALL, 4, 2, 0.25), (ALL, 4, 1, 2.0), (SOME, 4, 1, 0.1), (SOME, 1, 0, 0.25),
        (torch.ones(1, 1, dtype=torch.bool), 1, 1, 0.25),
        (torch.zeros(1, 2, dtype=torch.bool), 3, 1, 0.25),
        (PARTS, 20, 1, 0.25),
        (torch.ones(3, 400, dtype=torch.bool), 300, 0, 0.25),  # scores of several blocks of groups
        (torch.ones(2, 700, dtype=torch.bool), 500, 0, 0.25),  # and of several blocks of rows
    ],
)  # fmt: skip
def test_value_and_gradients(
    M: int, there: torch.Tensor, N: int, s: int, tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights of positives that differ, and with neighbours or without."""
    user, item, samples = step(M, there, N, s)
    leaves = [user.clone().requires_grad_(), item.clone().requires_grad_()]
    want = dense(*leaves, samples, tau)
    gradients = torch.autograd.grad(torch.stack([*want.values()]).sum(), leaves)
    nan = torch.nan  # whatever is left unwritten
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, nan))
    found = softmax(user, item, samples, SETTINGS, tau)
    assert found.terms.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found.terms[name], value.detach(), rtol=1e-9, atol=1e-12)
    for mine, theirs in zip((found.user_grad_MPbk, found.item_grad_MLk), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_negatives_have_no_weights() -> None:
    """base, scale_Pb, weight_PN and the weight of the mean over negatives are UltraGCN's alone."""
    user, item, samples = step(2, SOME, 4, 1)
    others = replace(samples, base=9.0, scale_Pb=samples.scale_Pb + 5, weight_PN=samples.weight_PN + 7)
    a, b = softmax(user, item, samples, SETTINGS, 0.25), softmax(user, item, others, Coefficients(0.6, 77.0), 0.25)
    assert torch.equal(a.terms["softmax"], b.terms["softmax"])
    assert torch.equal(a.user_grad_MPbk, b.user_grad_MPbk)
    assert torch.equal(a.item_grad_MLk, b.item_grad_MLk)


@pytest.mark.parametrize("tau", [COLDEST, 1.0])
def test_rows_of_zeros_and_the_coldest_temperature_stay_finite(tau: float) -> None:
    user, item, samples = step(1, ALL, 4, 1)
    user[0, 0, 0] = 0
    item[0, -1] = 0
    item[0, -4:-1], user[0, 1, 1] = -user[0, 1, 0], user[0, 1, 0]  # scores of -1 / tau
    item[0, -12], item[0, -11] = -user[0, 1, 0], user[0, 1, 0]  # and of both signs for the positives
    found = softmax(user.float(), item.float(), floats(samples), SETTINGS, tau)
    want = dense(user, item, samples, tau)
    torch.testing.assert_close(found.terms["softmax"].double(), want["softmax"], rtol=1e-4, atol=0)
    for x in (*found.terms.values(), found.user_grad_MPbk, found.item_grad_MLk):
        assert torch.isfinite(x).all()
    assert (found.user_grad_MPbk[0, 0, 0] != 0).all()  # it can learn


def test_lengths_do_not_matter() -> None:
    user, item, samples = step(1, ALL, 4, 0)
    a, b = softmax(user, item, samples, SETTINGS, 0.3), softmax(3 * user, 7 * item, samples, SETTINGS, 0.3)
    torch.testing.assert_close(a.terms["softmax"], b.terms["softmax"], rtol=1e-7, atol=0)
    torch.testing.assert_close(a.user_grad_MPbk, 3 * b.user_grad_MPbk, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(a.item_grad_MLk, 7 * b.item_grad_MLk, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("M", [1, 3])
def test_on_a_device_the_same_numbers_without_waiting(counted: Any, M: int) -> None:
    user, item, samples = step(M, SOME, 4, 2)
    user, item = user.float(), item.float()
    want = softmax(user, item, floats(samples), SETTINGS, 0.3)
    given = user.to("standin"), item.to("standin"), floats(samples, "standin")
    counted.clear()
    found = softmax(*given, SETTINGS, 0.3)
    assert (counted.waits, counted.copies) == (0, 0)
    assert counted.launches <= 75
    for name, value in want.terms.items():
        torch.testing.assert_close(found.terms[name].cpu(), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.user_grad_MPbk.cpu(), want.user_grad_MPbk, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.item_grad_MLk.cpu(), want.item_grad_MLk, rtol=1e-6, atol=1e-6)
