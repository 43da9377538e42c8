"""Stage 1's networks (section 4.1): encoders f_r, shared head g, specific heads k_m.

Shapes: R items, d_m width of modality m, M modalities, D representation width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """x_m [R, d_m] -> v_m [R, D] for m = 1..M, z_m [R, D] for m = 1..M, z_{M+1} [R, D], and tau."""
        h = [f(part) for f, part in zip(self.f, x, strict=True)]
        common = self.g(self.f_all(torch.cat(x, dim=1)))
        specific = x if self.encoder == "identity" else h
        v = [k(part) for k, part in zip(self.k, specific, strict=True)]
        return v, [self.g(part) for part in h], common, self.tau


class Club(nn.Module):
    """q(v|z) = N(mean(z), exp(logvar(z))) of CLUB (Cheng et al., ICML 2020), one per modality."""

    def __init__(self, z_width: int, v_width: int, hidden: int):
        super().__init__()
        self.hidden = _Linear(z_width, hidden)
        self.mean = _Linear(hidden, v_width)
        self.logvar = _Linear(hidden, v_width)

    def forward(self, z_Cd: Tensor, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and log variance [C, v_width]; `fixed` lets gradients through to z but not to q's parameters."""
        h = F.relu(self.hidden(z_Cd, fixed))
        # bounded: a vanishing variance would make the bound explode
        return self.mean(h, fixed), self.logvar(h, fixed).tanh() * 5


class _Linear(nn.Linear):
    """A linear map that can be held fixed inside its own forward, where ZeRO-3 has gathered its parameters."""

    def forward(self, x: Tensor, fixed: bool = False) -> Tensor:
        return F.linear(x, self.weight.detach(), self.bias.detach()) if fixed else super().forward(x)


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
