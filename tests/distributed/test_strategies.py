"""Model and optimiser state move between DDP and every ZeRO stage without changing a number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parallel_helpers import carried_over, small, spawn

from m3dist.data.dataset import Dataset

DDP = small()
ZERO = [small("strategy=deepspeed", f"zero_stage={stage}") for stage in range(4)]


@pytest.fixture(scope="module")
def straight(root: Path) -> dict[str, torch.Tensor]:
    return carried_over(0, 1, "align", DDP, DDP, root, 2)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (2, 3),
        (None, 3),
        (2, None),
        (0, 1),
        (1, 2),
        (3, 0),
    ],
)
def test_state_moves(first: int | None, then: int | None, root: Path, straight: dict[str, torch.Tensor]) -> None:
    before, after = (DDP if stage is None else ZERO[stage] for stage in (first, then))
    for rank, result in enumerate(spawn(2, carried_over, "align", before, after, root, 2)):
        assert set(result) == set(straight)
        own = slice(*Dataset(root).part(rank, 2).users)  # whose rows and moments this worker holds
        for name, whole in straight.items():
            value = whole[own] if name.startswith("user/") else whole
            torch.testing.assert_close(result[name], value, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
