"""UltraGCN's closed form against autograd on a dense float64 computation of the same terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from m3dist.losses import logistic
from m3dist.losses.logistic import Coefficients, Constants, Samples, ultragcn


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(M: int, there: torch.Tensor, N: int, s: int, k: int = 3) -> tuple[torch.Tensor, torch.Tensor, Samples]:
    """Rows and weights of positives of which `there` [P, b] marks those that exist, of a batch twice as large."""
    P, b = there.shape
    X = P * b
    user, item = randn(M, P, b, k), randn(M, (s + 1) * X + P * N, k, seed=1)
    positive, scale, weight, omega = (randn(*n, seed=2).abs() for n in ((P, b), (P, b), (P, N), (s, X)))
    share = there.double() / (2 * max(int(there.sum()), 1))
    filled = tuple(int(row.nonzero().max()) + 1 if row.any() else 0 for row in there)
    return user, item, Samples(share, positive, 0.7, scale, weight, omega if s else None, filled)


def dense(user: torch.Tensor, item: torch.Tensor, samples: Samples) -> dict[str, torch.Tensor]:
    """Eq. 8, 10, 11 and 15 of UltraGCN, sample by sample."""
    M, P, b, k = user.shape
    X, N = P * b, samples.weight_PN.shape[1]
    s = 0 if samples.omega_sX is None else len(samples.omega_sX)
    near, own, far = item.split([s * X, X, P * N], dim=1)
    near, own, far = near.view(M, s, P, b, k), own.view(M, P, b, k), far.view(M, P, 1, N, k)
    share, weight = samples.share_Pb, samples.base + samples.scale_Pb[..., None] * samples.weight_PN[:, None]
    score = (user[:, :, :, None] * far).sum(4)
    out = {
        "positive": -(share * samples.positive_Pb * (user * own).sum(3).sigmoid().log()).sum((1, 2)),
        "negative": -4 * (share[..., None] * weight * (1 - score.sigmoid()).log() / N).sum((1, 2, 3)),
    }  # fmt: skip
    if samples.omega_sX is not None:
        omega = samples.omega_sX.view(s, P, b)
        out["neighbours"] = -0.6 * (share * omega * (user[:, None] * near).sum(4).sigmoid().log()).sum((1, 2, 3))
    return out


ALL = torch.ones(2, 3, dtype=torch.bool)
SOME = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])  # one group has no positives
PARTS = torch.arange(400) < torch.tensor([[5], [400], [399], [400], [120]])  # two groups that workers share


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize(
    ("there", "N", "s"),
    [
        (ALL, 4, 2), (SOME, 4, 1), (SOME, 1, 0), (torch.ones(1, 1, dtype=torch.bool), 1, 1),
        (torch.zeros(1, 2, dtype=torch.bool), 3, 1),
        (PARTS, 20, 1), (torch.ones(3, 400, dtype=torch.bool), 300, 1),  # scores of several blocks of groups
        (torch.ones(2, 700, dtype=torch.bool), 500, 1),  # and of several blocks of rows
    ],
)  # fmt: skip
def test_value_and_gradients(M: int, there: torch.Tensor, N: int, s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    user, item, samples = step(M, there, N, s)
    leaves = [user.clone().requires_grad_(), item.clone().requires_grad_()]
    want = dense(*leaves, samples)
    gradients = torch.autograd.grad(torch.stack([*want.values()]).sum(), leaves)
    nan = torch.nan  # whatever is left unwritten
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, nan))
    found = ultragcn(user, item, samples, Coefficients(0.6, 4.0))
    assert found.terms.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found.terms[name], value.detach(), rtol=1e-9, atol=1e-12)
    for mine, theirs in zip((found.user_grad_MPbk, found.item_grad_MLk), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("N", [20, 300, 4000])  # several groups at once, one, and a part of one
def test_positions_that_another_worker_has_are_not_scored(N: int) -> None:
    times_Pb, filled = torch.zeros(PARTS.shape, dtype=torch.int64), tuple(PARTS.sum(1).tolist())
    for groups, rows, members in logistic.blocks((2, *PARTS.shape, N), torch.device("cpu"), filled):
        times_Pb[groups, rows] += len(members)
    assert (times_Pb[PARTS] == 2).all()
    assert int(times_Pb[~PARTS].sum()) <= 2  # a group of full height may lack its last


def test_extreme_scores_stay_finite() -> None:
    user, item, samples = step(1, ALL, 4, 1)
    found = ultragcn(user.float() * 1e4, item.float(), floats(samples), Coefficients(0.6, 4.0))
    for x in (*found.terms.values(), found.user_grad_MPbk, found.item_grad_MLk):
        assert torch.isfinite(x).all()
    want = dense(user * 1e4, item, samples)
    assert not torch.isfinite(want["negative"]).all()  # where the plain formula is not


def floats(samples: Samples, device: str = "cpu") -> Samples:
    moved = {k: x.float().to(device) for k, x in vars(samples).items() if isinstance(x, torch.Tensor)}
    return replace(samples, **moved)


@pytest.mark.parametrize("M", [1, 3])
def test_on_a_device_the_same_numbers_without_waiting(counted: Any, M: int) -> None:
    user, item, samples = step(M, SOME, 4, 2)
    user, item = user.float(), item.float()
    want = ultragcn(user, item, floats(samples), Coefficients(0.6, 4.0))
    given = user.to("standin"), item.to("standin"), floats(samples, "standin")
    counted.clear()
    found = ultragcn(*given, Coefficients(0.6, 4.0))
    assert (counted.waits, counted.copies) == (0, 0)
    assert counted.launches <= 40 + 6 * M
    for name, value in want.terms.items():
        torch.testing.assert_close(found.terms[name].cpu(), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.user_grad_MPbk.cpu(), want.user_grad_MPbk, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.item_grad_MLk.cpu(), want.item_grad_MLk, rtol=1e-6, atol=1e-6)


def test_constants_are_those_of_the_paper() -> None:
    """beta_ui = 1/d_u sqrt((d_u + 1) / (d_i + 1)); whoever is not there weighs nothing and is its own neighbour."""
    graph = torch.tensor([[1], [0]], dtype=torch.int32), torch.tensor([[0.5], [0.25]])
    got = Constants.of(torch.tensor([3, 1, 0]), torch.tensor([2, 0]), graph)
    for u, d_u in enumerate((3, 1)):
        for i, d_i in enumerate((2, 0)):
            beta = ((d_u + 1) / (d_i + 1)) ** 0.5 / d_u
            assert float(got.a_U[u] * got.c_I[i]) == pytest.approx(beta, rel=1e-6)
    assert (float(got.a_U[3]), float(got.c_I[2])) == (0, 0)
    assert got.neighbour_IK is not None
    assert got.omega_IK is not None
    assert got.neighbour_IK.tolist() == [[1], [0], [2]]
    assert got.omega_IK.tolist() == [[0.5], [0.25], [0]]
