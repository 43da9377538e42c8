"""The invariant gate m in [0, 1]^D (eq. 9-10), for all representations at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """One mask per representation, from logits that start at `init`.

    kind: `sigmoid` is the softmax over a dimension's two roles, invariant or variant, which gives eq. 10 its
    1 - m. `hard_sigmoid` is InvRL's stochastic gate: noise while training, clipped to [0, 1]. `softmax` normalises
    over dimensions, scaled by D and clipped to 1 so that the mean entry starts at `init`.
    """

    def __init__(self, widths: list[int], kind: str, init: float, noise: float = 0.0):
        super().__init__()
        self.kind, self.init, self.noise = kind, init, noise
        start = {"sigmoid": math.log(init / (1 - init)), "hard_sigmoid": init - 0.5, "softmax": 0.0}[kind]
        self.logits = nn.ParameterList(nn.Parameter(torch.full((width,), start)) for width in widths)

    def forward(self, generator: torch.Generator | None = None) -> list[Tensor]:
        """Masks [D_r] of every representation. A generator adds the noise of `hard_sigmoid`."""
        return [self._mask(logit_D, generator) for logit_D in self.logits]

    def _mask(self, logit_D: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.kind == "sigmoid":
            return logit_D.sigmoid()
        if self.kind == "softmax":
            return (logit_D.softmax(0) * len(logit_D) * self.init).clamp(max=1.0)
        if generator is not None and self.noise:
            logit_D = logit_D + self.noise * torch.randn(logit_D.shape, generator=generator).to(logit_D.device)
        return (logit_D + 0.5).clamp(0.0, 1.0)
