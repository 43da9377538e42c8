"""Adam (Kingma and Ba, 2015) by torch's fused kernel, for rows of tables and for parameters.

`torch.optim.Adam` computes the same; the first of a process imports TorchDynamo, which takes seconds of a run's start
and 70 MiB, for a compiler that nothing here calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import adam

BETAS = (0.9, 0.999)
EPS = 1e-8

Moments = tuple[list[Tensor], list[Tensor]]  # running means of gradients and of their squares


def move(weights: Sequence[Tensor], grads: Sequence[Tensor], moments: Moments, steps: list[Tensor], lr: Tensor) -> None:
    """One step of each weight, in place, with its moments; steps: how many each has taken, which this adds 1 to."""
    adam.adam(
        [*weights], [*grads], *moments, [], steps, fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1],
        lr=lr, weight_decay=0.0, eps=EPS, maximize=False,
    )  # fmt: skip


class Adam:
    """An optimiser whose rates and counts of steps live with the parameters, on their device.

    groups: dicts of `params` and `lr`. state: `step`, `exp_avg` and `exp_avg_sq` of every parameter that has moved.
    """

    def __init__(self, groups: list[dict[str, Any]]):
        self.param_groups: list[dict[str, Any]] = []
        for group in groups:
            params = [*group["params"]]
            self.param_groups.append({"params": params, "lr": torch.full((), group["lr"], device=params[0].device)})
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient, and drop the gradients."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for p in moved:
                if p not in self.state:
                    step = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            first, second, steps = ([self.state[p][key] for p in moved] for key in ("exp_avg", "exp_avg_sq", "step"))
            if moved:
                move(moved, [p.grad for p in moved], (first, second), steps, group["lr"])
            for p in moved:
                p.grad = None
