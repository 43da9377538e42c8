"""Stage 1's networks (section 4.1): encoders f_r, shared head g, specific heads k_m.

Shapes: R items, d_m width of modality m, M modalities, D representation width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.losses.contrastive import Anchors, ClubSamples, club


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

    def forward(self, x: list[Tensor], at_c: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """x_m [R, d_m] -> v_m [R, D] for m = 1..M, z_{M+1} [R, D], and z_m of the rows at_c, [M, c, D]."""
        h = [] if self.encoder == "identity" else [f(part) for f, part in zip(self.f, x, strict=True)]
        v = [k(part) for k, part in zip(self.k, h, strict=True)] if h else x
        common = self.g(self.f_all(torch.cat(x, dim=1)))
        if at_c is None:
            return v, common, None
        if h:
            some = [part.index_select(0, at_c) for part in h]
        else:
            some = [f(part.index_select(0, at_c)) for f, part in zip(self.f, x, strict=True)]
        return v, common, self.g(torch.stack(some))


class Club(nn.Module):
    """q(v|z) = N(mean(z), exp(logvar(z))) of CLUB (Cheng et al., ICML 2020) for every modality, side by side.

    One hidden layer of ReLU. v of all modalities are as wide as the widest, with zeros behind the narrower ones.
    """

    wide_Mw: Tensor

    def __init__(self, z_width: int, v_widths: list[int], hidden: int):
        super().__init__()
        M, w = len(v_widths), max(v_widths)
        layers = [(nn.Linear(z_width, hidden), nn.Linear(hidden, 2 * w)) for _ in v_widths]
        self.hidden_MDH = nn.Parameter(torch.stack([first.weight.detach().T for first, _ in layers]))
        self.hidden_bias = nn.Parameter(torch.stack([first.bias.detach() for first, _ in layers]).unsqueeze(1))
        self.out_MHk = nn.Parameter(torch.stack([second.weight.detach().T for _, second in layers]))
        self.out_bias = nn.Parameter(torch.stack([second.bias.detach() for _, second in layers]).unsqueeze(1))
        wide = torch.arange(w) < torch.tensor(v_widths).view(M, 1)
        self.register_buffer("wide_Mw", wide.float(), persistent=False)

    def stacked(self, v: list[Tensor]) -> Tensor:
        """v_m [C, d_m] as one [M, C, w]."""
        w = self.wide_Mw.shape[1]
        return torch.stack([x if x.shape[1] == w else F.pad(x, (0, w - x.shape[1])) for x in v])

    def forward(self, v_MCw: Tensor, z_MCD: Tensor, valid_MC: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """The bounds on I(v_m; z_m), [M], whose gradients leave q as it is, and the mean of -log q, a scalar, whose
        gradient is q's alone: this worker's shares of the means over valid items. See losses.contrastive."""
        parameters = (self.hidden_MDH, self.hidden_bias, self.out_MHk, self.out_bias)
        samples = ClubSamples(v_MCw, z_MCD, valid_MC, self.wide_Mw, (anchors.low, anchors.high))
        with torch.autocast(v_MCw.device.type, enabled=False):
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
