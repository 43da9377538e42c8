"""Stage 1's networks: what each modality passes through, where they start, and q beside them."""

from __future__ import annotations

import math

import pytest
import torch

from m3dist.losses.contrastive import Anchors
from m3dist.models.alignment import Aligner, Chosen, Club

WIDTHS = [4, 6]


def content(items: int = 7) -> list[torch.Tensor]:
    return [torch.randn(items, w, generator=torch.Generator().manual_seed(w)) for w in WIDTHS]


@pytest.mark.parametrize(("encoder", "widths"), [("identity", [4, 6, 5]), ("linear", [5, 5, 5]), ("mlp", [5, 5, 5])])
def test_what_a_modality_passes_through(encoder: str, widths: list[int]) -> None:
    """The head g is one for all, and what is under contrast has the same v and z_{M+1}."""
    torch.manual_seed(0)
    aligner, x = Aligner(WIDTHS, 5, encoder, 0.5, False), content()
    whole = torch.cat(x, dim=1)
    v, common = aligner(whole)
    assert aligner.out_widths == [*(part.shape[1] for part in v), common.shape[1]] == widths
    torch.testing.assert_close(common, aligner.g(aligner.f_all(whole)))
    again, chosen = aligner.chosen(whole)
    assert chosen.z_MCD.shape == (2, 7, 5)
    torch.testing.assert_close(again, common)
    torch.testing.assert_close(chosen.v_CW, torch.cat(v, dim=1))
    for m, (part, v_m) in enumerate(zip(x, v, strict=True)):
        h = aligner.f[m](part)
        torch.testing.assert_close(chosen.z_MCD[m], aligner.g(h))
        torch.testing.assert_close(v_m, part if encoder == "identity" else aligner.k[m](h))


@pytest.mark.parametrize("encoder", ["identity", "linear", "mlp"])
def test_a_projection_of_all_that_is_found_and_its_gradients(encoder: str) -> None:
    """As of v_1..v_M and z_{M+1} side by side, however many maps are multiplied together first."""
    torch.manual_seed(0)
    aligner, x = Aligner(WIDTHS, 5, encoder, 0.5, False).double(), torch.cat(content(), dim=1).double()
    for name, p in aligner.named_parameters():  # biases start as 0
        p.data.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    project = torch.nn.Linear(sum(aligner.out_widths), 3).double()
    v, common = aligner(x)
    want, got = project(torch.cat([*v, common], dim=1)), aligner.projected(x, project)
    torch.testing.assert_close(got, want)
    named = {**dict(aligner.named_parameters()), **dict(project.named_parameters())}
    weights = torch.linspace(-1, 2, want.numel(), dtype=torch.float64).view_as(want)
    both = [torch.autograd.grad((y * weights).sum(), [*named.values()], allow_unused=True) for y in (got, want)]
    for name, mine, theirs in zip(named, *both, strict=True):
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            torch.testing.assert_close(mine, theirs, msg=name)


@pytest.mark.parametrize("encoder", ["identity", "linear", "mlp"])
def test_a_projection_in_half_precision(encoder: str) -> None:
    torch.manual_seed(0)
    aligner, x = Aligner(WIDTHS, 5, encoder, 0.5, False), torch.cat(content(), dim=1)
    project = torch.nn.Linear(sum(aligner.out_widths), 3)
    want = aligner.projected(x, project)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = aligner.projected(x, project)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    got.float().sum().backward()
    assert project.weight.grad is not None
    assert torch.isfinite(project.weight.grad).all()


def test_linear_maps_start_near_the_identity() -> None:
    """Dimensions keep their meaning: output k of a wider map starts as input k mod width, rows as long as before."""
    torch.manual_seed(0)
    aligner, (x, _) = Aligner(WIDTHS, 8, "linear", 0.5, False), content()
    h = aligner.f[0](x)
    torch.testing.assert_close(h, torch.cat([x, x], dim=1) / 2**0.5)
    torch.testing.assert_close(aligner.k[0](h), h)
    torch.testing.assert_close(h.norm(dim=1), x.norm(dim=1))
    wide = Aligner([6, 6], 4, "linear", 0.5, False).f[0].weight  # no wider: an orthogonal projection
    torch.testing.assert_close(wide @ wide.T, torch.eye(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("log_tau", "want"), [(-9.0, 0.1), (math.log(0.7), 0.7), (9.0, 10.0)])
def test_tau_stays_in_the_range_of_the_paper(log_tau: float, want: float) -> None:
    aligner = Aligner(WIDTHS, 5, "linear", 0.5, False)
    assert float(aligner.tau.detach()) == pytest.approx(0.5)
    aligner.log_tau.data.fill_(log_tau)
    assert float(aligner.tau.detach()) == pytest.approx(want)
    assert aligner.log_tau.requires_grad
    assert not Aligner(WIDTHS, 5, "linear", 0.5, True).log_tau.requires_grad


def test_q_starts_as_linear_layers_do_and_learns_from_the_likelihood_alone() -> None:
    torch.manual_seed(0)
    club, C = Club(4, [3, 5], 6), 9
    torch.manual_seed(0)
    first, third = torch.nn.Linear(4, 6), torch.nn.Linear(6, 6)
    _, second = torch.nn.Linear(4, 6), torch.nn.Linear(6, 10)
    torch.testing.assert_close(club.hidden_MDH[0], first.weight.T)
    torch.testing.assert_close(club.out_2HW[1, :, :3], third.weight.T[:, 3:])  # of raw log variances
    torch.testing.assert_close(club.out_bias[:, 0, 3:], second.bias.view(2, 5))
    v, anchors = torch.randn(C, 8, requires_grad=True), Anchors(0, C)
    bounds_M, likelihood = club(Chosen(v, torch.randn(2, C, 4)), torch.ones(2, C), anchors)
    (bounds_M.sum() + likelihood).backward()
    assert v.grad is not None
    for name, p in club.named_parameters():
        assert p.grad is not None, name
        assert p.grad.shape == p.shape
        assert p.grad.abs().max() > 1e-3, name
