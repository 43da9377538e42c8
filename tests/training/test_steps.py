"""Learning rates and sums on a device, and steps one after the other."""

from __future__ import annotations

import pytest
import torch

from benchmarks.standin import Counted
from m3dist.distributed.engine import Engine
from m3dist.training.steps import Rate, Stepper, Sums


@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_a_rate_falls_from_what_it_was_given(counted: Counted, device: str) -> None:
    rate = Rate(0.4, torch.device(device))
    assert float(rate.now) == pytest.approx(0.4)
    now, left = rate.now, torch.full((), 0.5, device=device)
    counted.clear()
    rate.scale(left)
    rate.scale(left)  # from what it was given, not from where it was
    assert (counted.waits, counted.copies) == (0, 0)
    assert rate.now is now  # a captured step reads it where it stands
    assert float(rate.now) == pytest.approx(0.2)


@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_sums_are_read_once_and_start_again(counted: Counted, device: str) -> None:
    sums, terms = Sums(), [{"a": x, "b": 1e-9 * x} for x in torch.arange(1.0, 4.0).to(device).unbind()]
    assert sums.read() == {}
    counted.clear()
    for some in terms:
        sums.add(some)
    assert (counted.waits, counted.copies) == (0, 0)
    assert sums.read() == pytest.approx({"a": 6.0, "b": 6e-9})
    sums.start({"a": 10.0, "b": 0.0})  # of an epoch that was interrupted
    assert sums.read() == {"a": 10.0, "b": 0.0}
    sums.add(terms[0])
    assert sums.read() == pytest.approx({"a": 11.0, "b": 1e-9})
    sums.start({})
    assert sums.read() == {"a": 0.0, "b": 0.0}


def test_sums_are_of_double_precision() -> None:
    sums = Sums()
    for x in (1e8, 1.0, 1.0, 1.0):
        sums.add({"a": torch.tensor(x)})
    assert sums.read() == {"a": 100000003.0}


def test_sums_before_the_first_step_are_those_of_before() -> None:
    sums = Sums()
    sums.start({"a": 2.0})
    assert sums.read() == {"a": 2.0}


def test_steps_are_taken_one_by_one_where_there_is_no_cuda() -> None:
    taken: list[bool] = []
    stepper = Stepper(lambda: taken.append(torch.backends.cuda.matmul.allow_tf32), Engine())
    before = torch.backends.cuda.matmul.allow_tf32
    for _ in range(5):
        stepper()
    assert taken == [True] * 5  # the precision `auto` lets steps have TF32
    assert torch.backends.cuda.matmul.allow_tf32 is before
    assert "CUDA" in stepper.why_not
    stepper.close()
