"""Values whose gradients were found beside them, as differentiable functions of their inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx, value: Tensor, count: int, *both: Tensor) -> Tensor:  # type: ignore[override]
        ctx.count = count
        ctx.save_for_backward(*both[count:])
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return None, None, *(grad * known for known in ctx.saved_tensors), *[None] * ctx.count


def known(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """`value` as a differentiable function of `inputs`, whose gradients were found beside it."""
    return _Known.apply(value, len(inputs), *inputs, *gradients)
