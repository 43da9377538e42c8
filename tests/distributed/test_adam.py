"""Adam over groups: torch's own numbers, from groups with rates of their own, without what nobody asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from m3dist.distributed.adam import Adam

RATES = (1e-2, 3e-3)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), (2, 2))]


def steps(given: list[nn.Parameter], optimizer: Adam | torch.optim.Adam) -> list[Tensor]:
    """Six steps; the last parameter has a gradient in every other one only."""
    for at in range(6):
        for p in given:
            p.grad = None
        used = given if at % 2 else given[:-1]
        sum(((p - 1.0) ** 2 * (at + 1)).sum() for p in used).backward()  # type: ignore[union-attr]
        optimizer.step()
    return [p.detach() for p in given]


def test_torch_own_numbers() -> None:
    ours, theirs = parameters(), parameters()

    def groups(given: list[nn.Parameter]) -> list[dict]:
        return [{"params": given[:1], "lr": RATES[0]}, {"params": given[1:], "lr": RATES[1]}]

    def tensors(given: list[dict]) -> list[dict]:
        return [group | {"lr": torch.tensor(group["lr"])} for group in given]

    optimizer = Adam(groups(ours))
    found, expected = steps(ours, optimizer), steps(theirs, torch.optim.Adam(tensors(groups(theirs)), fused=True))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert [float(optimizer.state[p]["step"]) for p in ours] == [6, 6, 3]


def test_a_rate_is_read_at_every_step() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = Adam([{"params": [p], "lr": 1.0}])
    for rate in (0.5, 0.0):
        optimizer.param_groups[0]["lr"].fill_(rate)
        p.grad = torch.ones(3)
        optimizer.step()
        assert p.grad is None
    assert p.tolist() == pytest.approx([-0.5] * 3)  # Adam's first step is as long as the rate


def test_training_imports_no_compiler(tmp_path, planted_root) -> None:
    code = f"""
import sys
from m3dist import pipeline
from m3dist.config import load
small = ["merge.epochs=1", "race.steps=1", "align.epochs=1", "invariance.rounds=1", "merge.fusion=attention"]
pipeline.run(load(None, ["data={planted_root}", "out={tmp_path}/run", *small]), quiet=True)
print([name for name in ("torch._dynamo", "sympy", "ray", "deepspeed") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
