"""A table that is trained by rows moves as Adam moves it."""

from __future__ import annotations

import pytest
import torch

from m3dist.distributed.engine import Engine
from m3dist.distributed.tables import RowTable, Touched, pull_rows, push_rows


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dense", [True, False])
def test_row_table_is_adam(dense: bool) -> None:
    start = randn(6, 3)
    table, plain = RowTable(start.clone(), dense), start.clone().requires_grad_()
    adam = torch.optim.Adam([plain], lr=0.1)
    for step in range(3):
        ids = torch.arange(6) if not dense else torch.tensor([0, 2, 5 - step])
        (rows,) = pull_rows(Engine(), [(table, Touched(ids))])
        (rows * randn(len(ids), 3, seed=step)).sum().backward()
        push_rows(Engine(), [(table, Touched(ids), rows)], 0.1)
        adam.zero_grad()
        (plain[ids] * randn(len(ids), 3, seed=step)).sum().backward()
        adam.step()
    torch.testing.assert_close(table.weight, plain.detach(), rtol=1e-9, atol=1e-9)
