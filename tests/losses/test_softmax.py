"""The softmax of cosines against autograd on a dense float64 computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_logistic import ALL, L2, SOME, floats, step

from m3dist.losses.logistic import Coefficients, Samples, ultragcn
from m3dist.losses.softmax import Temperature, mixture, softmax

SETTINGS = Coefficients(0.6, 4.0, L2)


def dense(user: torch.Tensor, item: torch.Tensor, samples: Samples, tau: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss sample by sample, as torch's cross entropy has it; neighbours and L2 are tested with UltraGCN's."""
    M, P, b, k = user.shape
    N = samples.weight_PN.shape[1]
    _, own, far = item.split([item.shape[1] - P * (b + N), P * b, P * N], dim=1)
    rows = (user, own.view(M, P, b, k), far.view(M, P, 1, N, k))
    u, v, w = (x / (x.square().sum(-1, keepdim=True) + 1e-8).sqrt() for x in rows)
    score = torch.cat([(u * v).sum(3, keepdim=True), (u[:, :, :, None] * w).sum(4)], 3) / tau
    each = -score.log_softmax(3)[..., 0]
    return {"softmax": (samples.share_Pb * samples.positive_Pb * each).sum((1, 2))}


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize(
    ("there", "N", "s"),
    [
        (ALL, 4, 2), (SOME, 4, 1), (SOME, 1, 0), (torch.ones(1, 1, dtype=torch.bool), 1, 1),
        (torch.zeros(1, 2, dtype=torch.bool), 3, 1),
        (torch.ones(3, 400, dtype=torch.bool), 300, 0),  # scores of several blocks of groups
        (torch.ones(2, 700, dtype=torch.bool), 500, 0),  # and of several blocks of rows
    ],
)  # fmt: skip
def test_value_and_gradients(M: int, there: torch.Tensor, N: int, s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    user, item, samples = step(M, there, N, s)
    leaves = [user.clone().requires_grad_(), item.clone().requires_grad_()]
    log_tau = torch.full((M, 1, 1, 1), math.log(0.3), dtype=torch.float64, requires_grad=True)
    loss = dense(*leaves, samples, log_tau.exp())["softmax"]
    others = ultragcn(user, item, samples, SETTINGS)
    rest = ultragcn(user, item, samples_without_pairs(samples), Coefficients(0.6, 0.0, L2))
    gradients = torch.autograd.grad(loss.sum(), [*leaves, log_tau])
    nan = torch.nan  # whatever is left unwritten
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, nan))
    temperature = Temperature(torch.tensor(0.3, dtype=torch.float64), torch.full((M,), nan, dtype=torch.float64))
    found = softmax(user, item, samples, SETTINGS, temperature)
    torch.testing.assert_close(found.terms["softmax"], loss.detach(), rtol=1e-9, atol=1e-12)
    for name in found.terms.keys() - {"softmax"}:
        torch.testing.assert_close(found.terms[name], others.terms[name])
    mine = (found.user_grad_MPbk - rest.user_grad_MPbk, found.item_grad_MLk - rest.item_grad_MLk, temperature.grad_M)
    for a, b in zip(mine, gradients, strict=True):
        assert a is not None
        torch.testing.assert_close(a, b.view_as(a), rtol=1e-9, atol=1e-12)


def samples_without_pairs(samples: Samples) -> Samples:
    return Samples(
        samples.share_Pb, samples.positive_Pb * 0, samples.base, samples.scale_Pb, samples.weight_PN, samples.omega_sX
    )


def test_a_mixture_is_the_weighted_sum() -> None:
    user, item, samples = step(2, SOME, 4, 1)
    tau = Temperature(torch.tensor(0.3, dtype=torch.float64))
    without = Coefficients(0.0, 4.0, 0 * L2)
    parts = (ultragcn(user, item, samples, without), softmax(user, item, samples, without, tau))
    got = mixture(user, item, samples, without, tau, 0.25)
    for name in ("user_grad_MPbk", "item_grad_MLk"):
        want = 0.25 * getattr(parts[0], name) + 0.75 * getattr(parts[1], name)
        torch.testing.assert_close(getattr(got, name), want)
    torch.testing.assert_close(got.terms["softmax"], 0.75 * parts[1].terms["softmax"])
    torch.testing.assert_close(got.terms["negative"], 0.25 * parts[0].terms["negative"])
    torch.testing.assert_close(
        mixture(user, item, samples, SETTINGS, tau, 0.25).terms["l2"],
        ultragcn(user, item, samples, SETTINGS).terms["l2"],
    )


@pytest.mark.parametrize("tau", [0.01, 1.0])
def test_rows_of_zeros_and_cold_temperatures_stay_finite(tau: float) -> None:
    user, item, samples = step(1, ALL, 4, 1)
    user[0, 0, 0] = 0
    item[0, -1] = 0
    found = softmax(user.float(), item.float(), floats(samples), SETTINGS, Temperature(torch.tensor(tau)))
    for x in (*found.terms.values(), found.user_grad_MPbk, found.item_grad_MLk):
        assert torch.isfinite(x).all()
    assert (found.user_grad_MPbk[0, 0, 0] != 0).all()  # it can learn


def test_lengths_do_not_matter() -> None:
    user, item, samples = step(1, ALL, 4, 0)
    tau, without = Temperature(torch.tensor(0.3, dtype=torch.float64)), Coefficients(0.0, 1.0, 0 * L2)
    a = softmax(user, item, samples, without, tau)
    b = softmax(3 * user, 7 * item, samples, without, tau)
    torch.testing.assert_close(a.terms["softmax"], b.terms["softmax"], rtol=1e-7, atol=0)
    torch.testing.assert_close(a.user_grad_MPbk, 3 * b.user_grad_MPbk, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(a.item_grad_MLk, 7 * b.item_grad_MLk, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("M", [1, 3])
def test_on_a_device_the_same_numbers_without_waiting(counted: Any, M: int) -> None:
    user, item, samples = step(M, SOME, 4, 2)
    user, item = user.float(), item.float()
    settings = Coefficients(0.6, 4.0, L2.float())
    want = softmax(user, item, floats(samples), settings, Temperature(torch.tensor(0.3)))
    given = user.to("standin"), item.to("standin"), floats(samples, "standin")
    settings = Coefficients(0.6, 4.0, L2.float().to("standin"))
    temperature = Temperature(torch.full((), 0.3, device="standin"), torch.zeros(M, device="standin"))
    counted.clear()
    found = softmax(*given, settings, temperature)
    assert (counted.waits, counted.copies) == (0, 0)
    assert counted.launches <= 110
    for name, value in want.terms.items():
        torch.testing.assert_close(found.terms[name].cpu(), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.user_grad_MPbk.cpu(), want.user_grad_MPbk, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.item_grad_MLk.cpu(), want.item_grad_MLk, rtol=1e-6, atol=1e-6)
