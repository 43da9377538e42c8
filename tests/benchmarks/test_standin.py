"""The stand-in device refuses and counts what a GPU refuses and has to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.standin import NAME


def test_numbers_are_those_of_the_cpu(counted: Any) -> None:
    a, b = torch.randn(3, 4), torch.randn(4)
    got = (a.to(NAME) @ b.to(NAME)).relu().cpu()
    assert torch.equal(got, (a @ b).relu())
    assert got.device.type == "cpu"


def test_what_counts_as_a_launch(counted: Any) -> None:
    x = torch.zeros(3, 4, device=NAME)
    counted.clear()
    view = x.view(4, 3).T[1:, :2].unsqueeze(0)
    assert counted.launches == 0
    view.add_(1)
    assert (counted.launches, counted.by_name["add_"]) == (1, 1)
    assert torch.equal(x.cpu().view(4, 3).T[1:, :2], torch.ones(2, 2))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(), lambda x: float(x[0]), lambda x: bool((x > 0).any()), lambda x: x.tolist(),
        lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.unique(), lambda x: torch.bincount(x.long()),
        lambda x: torch.equal(x, x), lambda x: torch.repeat_interleave(x.long()),
        lambda x: x.masked_select(x > 0), lambda x: torch.where(x > 0),
    ],
)  # fmt: skip
def test_what_waits(counted: Any, read: Any) -> None:
    x = torch.tensor([1.0, 0.0, 2.0]).to(NAME)
    counted.clear()
    read(x)
    assert counted.waits >= 1


def test_what_copies(counted: Any) -> None:
    x = torch.arange(4.0).to(NAME)
    assert counted.copies == 1
    torch.tensor([1.0, 2.0], device=NAME)
    assert counted.copies == 2
    x.cpu()
    assert counted.copies == 3
    assert x[[0, 2]].cpu().tolist() == [0, 2]  # a list of positions goes to the device, and the result comes back
    assert counted.copies == 5
    x.copy_(torch.ones(4))
    assert counted.copies == 6
    x[torch.tensor([0])]
    assert counted.copies == 7


def test_what_came_to_the_host_meanwhile(counted: Any) -> None:
    """A copy that does not block is a launch, and only an event of before the last `clear` is over."""
    x = torch.arange(3.0).to(NAME)
    counted.clear()
    here, there = x.to("cpu", non_blocking=True), torch.get_device_module(NAME).Event()
    there.record()
    assert (counted.launches, counted.waits, counted.copies) == (1, 0, 0)
    there.synchronize()
    assert counted.waits == 1
    counted.clear()
    there.synchronize()
    assert (counted.waits, here.tolist()) == (0, [0, 1, 2])
    x.copy_(torch.ones(3), non_blocking=True)
    assert counted.copies == 1  # from memory that nobody pinned


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y, lambda x, y: torch.cat([y, x]), lambda x, y: x.index_select(0, y.long()),
        lambda x, y: y[x.long()], lambda x, y: torch.where(y > 0, x, x),
    ],
)  # fmt: skip
def test_devices_do_not_mix(counted: Any, mix: Any) -> None:
    with pytest.raises(RuntimeError, match="device"):
        mix(torch.ones(2, device=NAME), torch.ones(2))


def test_a_module_trains_without_waits(counted: Any) -> None:
    """Backward and a fused Adam whose rate is a tensor, with the numbers of the CPU."""
    torch.manual_seed(0)
    here, x = torch.nn.Linear(4, 2), torch.randn(3, 4)
    there = torch.nn.Linear(4, 2)
    there.load_state_dict(here.state_dict())
    there.to(NAME)
    y, rate = x.to(NAME), torch.full((), 0.1, device=NAME)
    ours = torch.optim.Adam(there.parameters(), lr=rate, fused=True)
    theirs = torch.optim.Adam(here.parameters(), lr=0.1)
    counted.clear()
    for _ in range(3):
        for optimizer, module, given in ((ours, there, y), (theirs, here, x)):
            optimizer.zero_grad()
            module(given).square().mean().backward()
            optimizer.step()
    assert (counted.waits, counted.copies) == (0, 0)
    torch.testing.assert_close(there.weight.detach().cpu(), here.weight.detach())
