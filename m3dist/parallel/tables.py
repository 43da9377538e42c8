"""Embedding tables that are trained by the rows of a step, so that a step does not grow with the table.

Workers hold the same table and add up one block of gradients, that of the rows which the global batch touches, so
the bytes of a step do not depend on the table either.

Shapes: n rows, d width, R distinct rows of a worker's share of a step, G of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m3dist.parallel.engine import Engine

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Touched:
    """The rows of a table that a step reads: this worker's `ids_R`, which stand at `at_R` among those of all, ids_G.

    Ids are ascending and distinct. A worker alone has no ids_G.
    """

    ids_R: Tensor
    ids_G: Tensor | None = None
    at_R: Tensor | None = None


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
    def random(
        n: int,
        d: int,
        std: float,
        generator: torch.Generator,
        dense: bool = False,
        device: str | torch.device = "cpu",
    ) -> RowTable:
        """Normal rows from a CPU generator, the same on every device."""
        return RowTable((torch.randn(n, d, generator=generator) * std).to(device), dense)

    def moments(self) -> dict[str, Tensor]:
        """Adam's state, as `load_moments` takes it."""
        return {"first": self.first, "second": self.second, "steps": torch.tensor(self.steps)}

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        self.first.copy_(moments["first"])
        self.second.copy_(moments["second"])
        self.steps = int(moments["steps"])

    def pull(self, ids_R: Tensor) -> Tensor:
        """A leaf [R, d] whose gradient `push` takes."""
        return self.weight[ids_R].requires_grad_()

    def push(self, ids_R: Tensor, rows_Rd: Tensor, lr: float) -> None:
        """One Adam step for the distinct rows `ids_R` from the gradient of what `pull` gave."""
        assert rows_Rd.grad is not None
        self.move(ids_R, rows_Rd.detach(), rows_Rd.grad, lr)

    @torch.no_grad()
    def move(self, ids_R: Tensor, weight: Tensor, grad: Tensor, lr: float) -> None:
        """One Adam step for the distinct rows `ids_R`, now `weight` [R, d]; writes into `weight`."""
        self.steps += 1
        if self.dense:
            grad = torch.zeros_like(self.weight).index_copy_(0, ids_R, grad)
            first, second, weight = self.first, self.second, self.weight
        else:
            first, second = self.first[ids_R], self.second[ids_R]
        first.lerp_(grad, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        scale = (second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(1e-8)
        weight.addcdiv_(first, scale, value=-lr / (1 - BETAS[0] ** self.steps))
        if not self.dense:
            self.first.index_copy_(0, ids_R, first)
            self.second.index_copy_(0, ids_R, second)
            self.weight.index_copy_(0, ids_R, weight)


Pulled = tuple[RowTable, Touched, Tensor]  # a table, what a step reads of it, and the leaf that `pull` gave


def push_rows(engine: Engine, pulled: Sequence[Pulled], lr: float) -> None:
    """One Adam step of every table from the gradients that `Dense.backward` left on the leaves."""
    if engine.world == 1:
        for table, touched, rows_Rd in pulled:
            table.push(touched.ids_R, rows_Rd, lr)
        return
    for (table, touched, _), grad_Gd in zip(pulled, _blocks(engine, pulled), strict=True):
        assert touched.ids_G is not None
        table.move(touched.ids_G, table.weight[touched.ids_G], grad_Gd, lr)


def _blocks(engine: Engine, pulled: Sequence[Pulled]) -> list[Tensor]:
    """Every table's gradient of the global batch's rows [G, d], added up in one collective."""
    shapes = []
    for _, touched, rows_Rd in pulled:
        assert touched.ids_G is not None
        shapes.append((len(touched.ids_G), rows_Rd.shape[1]))
    flat = torch.zeros(sum(G * d for G, d in shapes), device=engine.device)
    blocks = [part.view(shape) for part, shape in zip(flat.split([G * d for G, d in shapes]), shapes, strict=True)]
    for block_Gd, (_, touched, rows_Rd) in zip(blocks, pulled, strict=True):
        assert touched.at_R is not None
        assert rows_Rd.grad is not None
        block_Gd.index_copy_(0, touched.at_R, rows_Rd.grad)
    engine.add_up([flat])
    engine.sent += flat.numel() * flat.element_size()
    return [block_Gd.div_(engine.world) for block_Gd in blocks]
