"""Stage 1's networks (section 4.1): encoders f_r, shared head g, specific heads k_m.

Shapes: R items, C of them under contrast, of which c are this worker's, d_m width of modality m, V columns of all
modalities' features, M modalities, D representation width, W width of all v_m side by side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
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

    def forward(self, x_RV: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of all modalities side by side -> v_m [R, D] for m = 1..M, and z_{M+1} [R, D]."""
        v = list(x_RV.split(self.widths, dim=1))
        if self.encoder != "identity":
            v = [k(f(x)) for k, f, x in zip(self.k, self.f, v, strict=True)]
        return v, self.g(self.f_all(x_RV))

    def chosen(self, x_cV: Tensor) -> tuple[Tensor, Chosen]:
        """z_{M+1} [c, D] of items under contrast, and their v_m and z_m."""
        h = [f(x) for f, x in zip(self.f, x_cV.split(self.widths, dim=1), strict=True)]
        v_cW = x_cV
        if self.encoder != "identity":
            v_cW = torch.cat([k(x) for k, x in zip(self.k, h, strict=True)], dim=1)
        return self.g(self.f_all(x_cV)), Chosen(v_cW, self.g(torch.stack(h)))

    def projected(self, x_RV: Tensor, project: nn.Linear) -> Tensor:
        """What `project` makes of v_1..v_M and z_{M+1} side by side, [R, c].

        Where all on the way is linear, it is one product of the features with the product of all maps.
        """
        if self.encoder == "mlp":
            v, common = self(x_RV)
            return project(torch.cat([*v, common], dim=1))
        with torch.autocast(x_RV.device.type, enabled=False):
            weight_cV, bias_c = self._composed(project)
        return F.linear(x_RV, weight_cV, bias_c)

    def _composed(self, project: nn.Linear) -> tuple[Tensor, Tensor]:
        """The one linear map of the features that linear encoders, heads and `project` make up."""
        assert isinstance(self.f_all, nn.Linear)
        weight, of_code = project.weight.split([sum(self.out_widths) - self.dim, self.dim], dim=1)
        bias = torch.addmv(project.bias, of_code, self.g.bias)
        if self.encoder == "linear":
            heads, encoders = ([x for x in layers if isinstance(x, nn.Linear)] for layers in (self.k, self.f))
            maps = [W @ k.weight for W, k in zip(weight.split(self.dim, dim=1), heads, strict=True)]
            bias = torch.addmv(bias, weight, torch.cat([k.bias for k in heads]))
            bias = torch.addmv(bias, torch.cat(maps, dim=1), torch.cat([f.bias for f in encoders]))
            weight = torch.cat([W @ f.weight for W, f in zip(maps, encoders, strict=True)], dim=1)
        of_all = of_code @ self.g.weight
        return torch.addmm(weight, of_all, self.f_all.weight), torch.addmv(bias, of_all, self.f_all.bias)


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
        samples = Samples(*chosen, valid_MC, self.columns, anchors)
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
