"""The only training loop: step, evaluate, keep the best, stop early, log."""

from __future__ import annotations

import math
import time
from typing import Protocol

import torch
from torch import Tensor

from m3dist.config import Fit
from m3dist.data.batches import Batch, Sampler
from m3dist.parallel.engine import Dense
from m3dist.parallel.tables import RowTable
from m3dist.tracking import Tracker


class Task(Protocol):
    """What the loop trains."""

    sampler: Sampler
    dense: Dense
    tables: dict[str, RowTable]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; the terms of the loss, `loss` among them."""

    def evaluate(self) -> dict[str, float]:
        """Metrics on the validation split."""


def fit(task: Task, config: Fit, metric: str, stage: str, tracker: Tracker) -> dict[str, float]:
    """Train for at most config.epochs and leave the task at its best validation epoch, whose metrics are returned.

    Raises FloatingPointError when the loss stops being finite.
    """
    bar = tracker.start(stage, config.epochs)
    best, kept, waited = task.evaluate() if config.epochs == 0 else {}, _copy(task), 0
    for epoch in range(config.epochs):
        sums: dict[str, Tensor] = {}
        started = time.perf_counter()
        for step in range(task.sampler.steps):
            for name, value in task.step(task.sampler(epoch, step)).items():
                sums[name] = sums.get(name, torch.zeros(())) + value.detach()
        report = {name: float(total) / task.sampler.steps for name, total in sums.items()}
        if not math.isfinite(report["loss"]):
            raise FloatingPointError(f"{stage}: the loss is {report['loss']} in epoch {epoch}; lower {stage}.lr")
        report["interactions/s"] = len(task.sampler.user) / (time.perf_counter() - started)
        last = epoch == config.epochs - 1
        if (epoch + 1) % config.evaluate_every == 0 or last:
            metrics = task.evaluate()
            if not best or metrics[metric] > best[metric]:
                best, kept, waited = {**metrics, "epoch": epoch}, _copy(task), 0
            else:
                waited += 1
            report |= metrics
        tracker.log(stage, epoch, report)
        tracker.advance(bar, f"loss {report['loss']:.4f}  best {metric} {best.get(metric, math.nan):.4f}")
        if config.patience and waited >= config.patience:
            break
    tracker.finish(bar)
    task.dense.load({name: x for name, x in kept.items() if name not in task.tables})
    for name, table in task.tables.items():
        table.weight.copy_(kept[name])
    return best


def _copy(task: Task) -> dict[str, Tensor]:
    return task.dense.state() | {name: table.weight.clone() for name, table in task.tables.items()}
