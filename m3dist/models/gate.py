"""The invariant gate m in [0, 1]^D of one representation (eq. 9-10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """A mask over `width` dimensions, from logits that start at `init`.

    kind: `sigmoid` is the softmax over a dimension's two roles, invariant or variant, which gives eq. 10 its
    1 - m. `hard_sigmoid` is InvRL's stochastic gate: noise while training, clipped to [0, 1]. `softmax` normalises
    over dimensions, scaled by D and clipped to 1 so that the mean entry starts at `init`.
    """

    def __init__(self, width: int, kind: str, init: float, noise: float = 0.0):
        super().__init__()
        self.kind, self.init, self.noise = kind, init, noise
        start = {"sigmoid": math.log(init / (1 - init)), "hard_sigmoid": init - 0.5, "softmax": 0.0}[kind]
        self.logit = nn.Parameter(torch.full((width,), start))

    def forward(self, noise_D: Tensor | None = None) -> Tensor:
        """The mask [D]. noise: standard normal numbers, which `hard_sigmoid` adds while it trains."""
        logit_D: Tensor = self.logit
        if self.kind == "sigmoid":
            return logit_D.sigmoid()
        if self.kind == "softmax":
            return (logit_D.softmax(0) * len(logit_D) * self.init).clamp(max=1.0)
        if noise_D is not None and self.noise:
            logit_D = logit_D + self.noise * noise_D
        return (logit_D + 0.5).clamp(0.0, 1.0)
