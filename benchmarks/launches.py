"""Section `launches`: what each kind of step asks of a GPU, counted on the stand-in device: launches, waits, copies.

A step is what training takes: learning rate, sampling, loss, optimisers and the sums that are reported. Its shapes
depend on the batch and not on the data, so a small data set counts like a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row
from benchmarks.standin import NAME, Counted, Standin
from benchmarks.subjects import STEPS, Subject
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Dense, Engine
from m3dist.evaluation.ranking import Users

MOST = {"backbone": 208, "align": 450, "merge": 300, "environments": 225, "masks": 325}  # launches of a step
BLOCK = 82  # of an evaluation block, which may wait once
LOSSES = ("softmax", "ultragcn")
EMBEDDINGS = ("replicated", "sharded")
SHARED = 65  # launches more of a step of one of several workers


class OneOfTwo(Engine):
    """The first of two workers, the other of which gives to every collective what it gives itself."""

    def __init__(self, device: str):
        super().__init__(0, 2, device)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        for x in tensors:
            x.mul_(2)

    def adding_up(self, flat: Tensor) -> Callable[[], object]:
        flat.mul_(2)
        return lambda: None

    def exchange(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """What this worker gives to itself, and from the other what it gives first, or zeros."""
        theirs = x[: receive[1]]
        return torch.cat([x[: send[0]], F.pad(theirs, (0, receive[1] - len(theirs)))])

    def gather(self, x_cd: Tensor, counts: list[int]) -> Tensor:
        return torch.cat([x_cd, x_cd])

    def collect(self, value: Any) -> list[Any]:
        return [value, value]

    def wrap(self, module: nn.Module, groups: list[dict[str, Any]]) -> Dense:
        return Dense(self, module.to(self.device), module, groups)


def measure(dataset: Dataset, size: str, *overrides: str) -> Iterator[Row]:
    """A row for each kind of step under each loss, alone and of one of two workers, and for a block of users in
    evaluation."""
    for loss in LOSSES:
        with Standin() as counted:
            subject = Subject(dataset, *overrides, f"backbone.loss={loss}", device=NAME)
            for kind in STEPS:
                yield _counts(f"{kind} step, {loss}, {size}", subject.step(kind), counted, MOST[kind])
            for embeddings in EMBEDDINGS:
                values = (*subject.overrides, f"embeddings={embeddings}")
                half = Subject(dataset, *values, device=NAME, engine=OneOfTwo(NAME))
                for kind in ("align", "merge"):
                    step, most = half.step(kind, captured=False), MOST[kind] + SHARED
                    yield _counts(
                        f"{kind} step of one of two workers, {embeddings}, {loss}, {size}", step, counted, most
                    )
    with Standin() as counted:
        block = f"evaluation.block={min(256, dataset.n_users // 2)}"
        yield _block(Subject(dataset, block, *overrides, device=NAME), size, counted)


def _counts(what: str, step: Callable[[], object], counted: Counted, most: int) -> Row:
    """Of the third step: the first makes the optimiser's state, and an epoch's last one begins no further one."""
    for _ in range(2):
        step()
    counted.clear()
    step()
    return _row(what, counted, f"at most {most} launches, no waits, no copies")


def _block(subject: Subject, size: str, counted: Counted) -> Row:
    """The second block of users, ranked by the fused members: the first makes what blocks share."""
    ranking = subject.context.evaluator.ranking(subject.fused, max(subject.config.evaluation.k), "val")
    blocks = ranking.blocks(Users.of(np.arange(2 * ranking.block), subject.data.device))
    with torch.no_grad():
        next(blocks)
        counted.clear()
        next(blocks)
    return _row(f"evaluation block, {size}", counted, f"at most {BLOCK} launches, 1 wait, no copies")


def _row(what: str, counted: Counted, note: str) -> Row:
    values = {"launches": counted.launches, "waits": counted.waits, "copies": counted.copies}
    return Row("launches", what, {name: float(x) for name, x in values.items()}, note)
