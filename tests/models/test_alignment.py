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
    """z_m and v_m of chosen rows are those of all rows; the head g is one for all."""
    torch.manual_seed(0)
    aligner, x, at_c = Aligner(WIDTHS, 5, encoder, 0.5, False), content(), torch.tensor([2, 2, 6])
    v, common, chosen = aligner(x, at_c)
    assert aligner.out_widths == [*(part.shape[1] for part in v), common.shape[1]] == widths
    torch.testing.assert_close(common, aligner.g(aligner.f_all(torch.cat(x, dim=1))))
    assert chosen.z_MCD.shape == (2, 3, 5)
    torch.testing.assert_close(chosen.v_CW, torch.cat(v, dim=1)[at_c])
    for m, (part, v_m) in enumerate(zip(x, v, strict=True)):
        h = aligner.f[m](part)
        torch.testing.assert_close(chosen.z_MCD[m], aligner.g(h)[at_c])
        torch.testing.assert_close(v_m, part if encoder == "identity" else aligner.k[m](h))
    again, common_again, none = aligner(x)
    assert none is None
    assert torch.equal(common_again, common)
    assert all(torch.equal(a, b) for a, b in zip(again, v, strict=True))


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
    v, anchors = torch.randn(C, 8, requires_grad=True), Anchors(C, (0, C), torch.device("cpu"))
    bounds_M, likelihood = club(Chosen(v, torch.randn(2, C, 4)), torch.ones(2, C), anchors)
    (bounds_M.sum() + likelihood).backward()
    assert v.grad is not None
    for name, p in club.named_parameters():
        assert p.grad is not None, name
        assert p.grad.shape == p.shape
        assert p.grad.abs().max() > 1e-3, name
