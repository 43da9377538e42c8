"""Stage 1's networks (section 4.1): encoders f_r, shared head g, specific heads k_m.

Shapes: R items, c of them under contrast, d_m width of modality m, M modalities, D representation width, W width of all
v_m side by side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m3dist.losses.club import Samples, club
from m3dist.losses.contrastive import Anchors
from m3dist.losses.masks import Columns


class Chosen(NamedTuple):
    """Of the C items under contrast, or a worker's part of them: v_m side by side [C, W], and z_m [M, C, D]."""

    v_CW: Tensor
    z_MCD: Tensor


class Aligner(nn.Module):
    """h_r = f_r(x_r), z_r = g(h_r), v_m = k_m(h_m); f_{M+1} reads all modalities at once.

    encoder: `linear` or `mlp` (one hidden layer of D, GELU). `identity` keeps v_m = x_m, so that a mask speaks of
    the given features themselves; z_r is learned all the same. Linear maps start as near to the identity as their
    shapes allow, so that dimensions keep their meaning where widths agree.
    """

    def __init__(self, widths: list[int], dim: int, encoder: str, tau: float, tau_fixed: bool):
        super().__init__()
        self.widths, self.dim, self.encoder = widths, dim, encoder
        self.f = nn.ModuleList([_encoder(width, dim, encoder) for width in widths])
        self.f_all = _encoder(sum(widths), dim, encoder)
        self.g = _near_identity(nn.Linear(dim, dim))
        self.k = nn.ModuleList(
            nn.Identity() if encoder == "identity" else _near_identity(nn.Linear(dim, dim)) for _ in widths
        )
        self.log_tau = nn.Parameter(torch.full((1,), math.log(tau)), requires_grad=not tau_fixed)

    @property
    def tau(self) -> Tensor:
        """The temperature of eq. 2, kept in the range that the paper tunes it in, [0.1, 10].

        Eq. 3 sums over negatives alone, so its loss falls without end as tau does, once positives are the nearest.
        """
        return self.log_tau.clamp(math.log(0.1), math.log(10.0)).exp().squeeze(0)

    @property
    def out_widths(self) -> list[int]:
        """Widths of v_1..v_M and z_{M+1}."""
        return [*(self.widths if self.encoder == "identity" else [self.dim] * len(self.widths)), self.dim]

    def forward(self, x: list[Tensor], at_c: Tensor | None = None) -> tuple[list[Tensor], Tensor, Chosen | None]:
        """x_m [R, d_m] -> v_m [R, D] for m = 1..M, z_{M+1} [R, D], and further outputs of the rows at_c."""
        h = [] if self.encoder == "identity" else [f(part) for f, part in zip(self.f, x, strict=True)]
        v = [k(part) for k, part in zip(self.k, h, strict=True)] if h else x
        all_RW = torch.cat(x, dim=1)
        common = self.g(self.f_all(all_RW))
        if at_c is None:
            return v, common, None
        if h:
            some = [part.index_select(0, at_c) for part in h]
            v_CW = torch.cat([part.index_select(0, at_c) for part in v], dim=1)
        else:
            v_CW = all_RW.index_select(0, at_c)
            some = [f(part) for f, part in zip(self.f, v_CW.split(self.widths, dim=1), strict=True)]
        return v, common, Chosen(v_CW, self.g(torch.stack(some)))


class Club(nn.Module):
    """q(v|z) = N(mean(z), exp(logvar(z))) of CLUB (Cheng et al., ICML 2020) for every modality.

    One hidden layer of ReLU; the columns of all modalities' v stand side by side.
    """

    def __init__(self, z_width: int, v_widths: list[int], hidden: int, device: str | torch.device = "cpu"):
        super().__init__()
        layers = [(nn.Linear(z_width, hidden), nn.Linear(hidden, 2 * width)) for width in v_widths]
        self.hidden_MDH = nn.Parameter(torch.stack([first.weight.detach().T for first, _ in layers]))
        self.hidden_bias = nn.Parameter(torch.stack([first.bias.detach() for first, _ in layers]).unsqueeze(1))
        out = [second.weight.detach().unflatten(0, (2, -1)) for _, second in layers]
        bias = [second.bias.detach().view(2, 1, -1) for _, second in layers]
        self.out_2HW = nn.Parameter(torch.cat(out, dim=1).mT.contiguous())  # of means and of raw log variances
        self.out_bias = nn.Parameter(torch.cat(bias, dim=2))
        self.columns = Columns(v_widths, torch.device(device))

    def forward(self, chosen: Chosen, valid_MC: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """The bounds on I(v_m; z_m), [M], whose gradients leave q as it is, and the mean of -log q, a scalar, whose
        gradient is q's alone: this worker's shares of the means over valid items. See losses.club."""
        parameters = (self.hidden_MDH, self.hidden_bias, self.out_2HW, self.out_bias)
        samples = Samples(*chosen, valid_MC, self.columns, (anchors.low, anchors.high))
        with torch.autocast(valid_MC.device.type, enabled=False):
            return club(samples, parameters)


def _near_identity(layer: nn.Linear) -> nn.Linear:
    """Where the output is no narrower, output k starts as input k mod width; else as an orthogonal projection."""
    nn.init.orthogonal_(layer.weight)
    if layer.out_features >= layer.in_features:
        copies = -(-layer.out_features // layer.in_features)
        eye = torch.eye(layer.in_features).repeat(copies, 1)[: layer.out_features]
        layer.weight.data.copy_(eye / copies**0.5)
    nn.init.zeros_(layer.bias)
    return layer


def _encoder(width: int, dim: int, kind: str) -> nn.Module:
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))
    return _near_identity(nn.Linear(width, dim))
