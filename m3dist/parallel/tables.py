"""Embedding tables that are trained by the rows of a step, so that a step does not grow with the table.

Shapes: n rows, d width, R distinct rows of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RowTable:
    """A table [n, d] with its own Adam (Kingma and Ba 2015); bias correction counts the table's steps.

    dense: rows outside a step follow their moments too, as torch.optim.Adam would move them.
    """

    def __init__(self, weight_nd: Tensor, dense: bool = False):
        self.weight = weight_nd
        self.first = torch.zeros_like(weight_nd)
        self.second = torch.zeros_like(weight_nd)
        self.steps = 0
        self.dense = dense

    @staticmethod
    def random(n: int, d: int, std: float, generator: torch.Generator, dense: bool = False) -> RowTable:
        return RowTable(torch.randn(n, d, generator=generator) * std, dense)

    def pull(self, ids_R: Tensor) -> Tensor:
        """A leaf [R, d] whose gradient `push` takes."""
        return self.weight[ids_R].requires_grad_()

    @torch.no_grad()
    def push(self, ids_R: Tensor, rows_Rd: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """One Adam step for the distinct rows `ids_R` from the gradient of what `pull` gave."""
        grad = rows_Rd.grad
        assert grad is not None
        self.steps += 1
        if self.dense:
            grad = torch.zeros_like(self.weight).index_copy_(0, ids_R, grad)
            first, second, weight = self.first, self.second, self.weight
        else:
            first, second, weight = self.first[ids_R], self.second[ids_R], rows_Rd.detach()
        first.lerp_(grad, 1 - betas[0])
        second.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        scale = (second / (1 - betas[1] ** self.steps)).sqrt_().add_(1e-8)
        weight.addcdiv_(first, scale, value=-lr / (1 - betas[0] ** self.steps))
        if not self.dense:
            self.first.index_copy_(0, ids_R, first)
            self.second.index_copy_(0, ids_R, second)
            self.weight.index_copy_(0, ids_R, weight)
