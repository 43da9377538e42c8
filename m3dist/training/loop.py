"""The only training loop: step, evaluate, keep the best, stop early, checkpoint, log."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from m3dist.config import Fit
from m3dist.data.sampling import Batch, Sampler
from m3dist.distributed.engine import Dense, Engine
from m3dist.distributed.tables import RowTable
from m3dist.storage.checkpoints import Checkpoints, Rows, Saved
from m3dist.training.callbacks import Stopped
from m3dist.training.tracking import Tracker

_CHECK = 16  # steps between workers' agreeing on whether to save or stop; a worker alone looks after every step
_SAVE, _END, _STOP = 1, 2, 3  # what rank 0 may ask for between steps


@dataclass(frozen=True)
class Plan:
    """Which stage is trained, how, and the validation metric that selects."""

    stage: str
    settings: Fit
    metric: str


class Task(Protocol):
    """What the loop trains."""

    sampler: Sampler
    dense: Dense
    tables: dict[str, RowTable]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; this worker's share of the terms of the loss, `loss` among them."""

    def evaluate(self) -> dict[str, float]:
        """Metrics on the validation split, the same on every worker."""


@dataclass
class Progress:
    """Where a fit stands: the next step to take, and what was best so far."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch's steps so far, over all workers
    best: dict[str, float] = field(default_factory=dict)
    waited: int = 0  # evaluations since the best


class Fitting:
    """A task under training, with what a checkpoint needs of it."""

    def __init__(self, task: Task, checkpoints: Checkpoints | None):
        self.task, self.checkpoints = task, checkpoints
        self.engine: Engine = task.dense.engine
        self.at = Progress()
        self.kept = self.weights()
        self._saved_best = ""
        saved = checkpoints.latest() if checkpoints else None
        if checkpoints and saved:
            self._load(saved)
            self.at = Progress(**saved.meta["progress"])
            if saved.meta["needs"]:
                self._saved_best = saved.meta["needs"][0]
                best = checkpoints.open(self._saved_best)
                for name, table in task.tables.items():
                    best.read(name, self.kept[name], table.low, table.n)
                self.kept |= best.tensors()

    def weights(self) -> dict[str, Tensor]:
        """Copies of what the model is made of, of sharded tables this worker's rows; every worker must call it."""
        return self.task.dense.state() | {name: table.weight.clone() for name, table in self.task.tables.items()}

    def keep(self) -> None:
        """Make the weights of now the best; tables are copied over the last best, so that there is never a third."""
        dense = self.task.dense.state()
        for name, table in self.task.tables.items():
            self.kept[name].copy_(table.weight)
        self.kept |= dense

    def restore(self, weights: dict[str, Tensor]) -> None:
        self.task.dense.load({name: x for name, x in weights.items() if name not in self.task.tables})
        for name, table in self.task.tables.items():
            table.weight.copy_(weights[name])

    def save(self, sums: dict[str, Tensor]) -> None:
        """Write a checkpoint of this very moment; `sums` are this worker's of the running epoch."""
        if self.checkpoints is None:
            return
        tables = self.task.tables
        sharded = any(table.sharded for table in tables.values())
        self.at.sums = self.engine.totals({name: float(x) for name, x in sums.items()})
        best = f"best-{self.at.best['epoch']:05.0f}" if self.at.best else ""
        if best and best != self._saved_best:
            dense = {name: x for name, x in self.kept.items() if name not in tables}
            self.checkpoints.save(best, {}, dense, Rows({name: self.kept[name] for name in tables}, sharded))
            self._saved_best = best
        tensors = {f"model/{name}": x for name, x in self.task.dense.state().items()}
        tensors |= {f"adam/{name}": x for name, x in self.task.dense.moments().items()}
        rows = {f"{name}/{key}": x for name, table in tables.items() for key, x in table.parts().items()}
        name = f"{self.at.epoch:05d}-{self.at.step:07d}"
        meta = {"progress": dataclasses.asdict(self.at), "steps": {name: x.steps for name, x in tables.items()}}
        self.checkpoints.save(name, meta, tensors, Rows(rows, sharded), [best] if best else [])

    def _load(self, saved: Saved) -> None:
        tensors = saved.tensors()

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

        self.task.dense.load(under("model/"))
        self.task.dense.load_moments(under("adam/"))
        for name, table in self.task.tables.items():
            for key, x in table.parts().items():
                saved.read(f"{name}/{key}", x, table.low, table.n)
            table.steps = saved.meta["steps"][name]


def fit(task: Task, plan: Plan, tracker: Tracker, checkpoints: Checkpoints | None = None) -> dict[str, float]:
    """Train for at most the plan's epochs and leave the task at its best validation epoch, whose metrics are returned.

    Goes on from the latest of `checkpoints`, in the middle of an epoch too, with the numbers that an uninterrupted
    run has. Raises FloatingPointError when the loss stops being finite, Stopped when a callback ends the run, and
    KeyboardInterrupt, after saving, when the tracker is interrupted.
    """
    stage, config, metric = plan.stage, plan.settings, plan.metric
    fitting = Fitting(task, checkpoints)
    at, engine = fitting.at, fitting.engine
    if config.epochs == 0:
        return task.evaluate()
    tracker.begin(stage, checkpoints.key if checkpoints else "", at.epoch)
    while at.epoch < config.epochs and not (config.patience and at.waited >= config.patience):
        report = _epoch(task, plan, fitting, tracker)
        if not math.isfinite(report["loss"]):
            raise FloatingPointError(f"{stage}: the loss is {report['loss']} in epoch {at.epoch}; lower {stage}.lr")
        epoch, last = at.epoch, at.epoch == config.epochs - 1
        if (epoch + 1) % config.evaluate_every == 0 or last:
            metrics = task.evaluate()
            if not at.best or metrics[metric] > at.best[metric]:
                at.best, at.waited = {**metrics, "epoch": epoch}, 0
                fitting.keep()
            else:
                at.waited += 1
            report |= metrics
        at.epoch, at.step = epoch + 1, 0
        note = f"loss {report['loss']:.4f}  best {metric} {at.best.get(metric, math.nan):.4f}"
        tracker.progress(stage, config.epochs, epoch + 1, f"{note}  {report['interactions/s']:,.0f}/s")
        stopped = log_epoch(tracker, engine, stage, epoch, report)
        request = 0 if last else _request(tracker, checkpoints, engine)  # an epoch may be too short to ask inside it
        if checkpoints and not last and (stopped or request or checkpoints.due_after(epoch)):
            fitting.save({})
        if stopped or request == _STOP:
            raise Stopped(f"{stage}: stopped after epoch {epoch}")
        if request == _END:
            raise KeyboardInterrupt
    tracker.progress(stage, at.epoch, at.epoch, f"best {metric} {at.best.get(metric, math.nan):.4f}")
    fitting.restore(fitting.kept)
    return at.best


def _epoch(task: Task, plan: Plan, fitting: Fitting, tracker: Tracker) -> dict[str, float]:
    """The rest of an epoch, from the step at which the fit stands; the mean of every term and the throughput."""
    at, engine, sampler, config = fitting.at, fitting.engine, task.sampler, plan.settings
    sums = {name: torch.tensor(total if engine.rank_zero else 0.0) for name, total in at.sums.items()}
    started, first = time.perf_counter(), at.step
    while at.step < sampler.steps:
        if config.decay == "linear":  # from where the fit stands, so that a resumed run has the same
            task.dense.scale_lr(1 - (at.epoch + at.step / sampler.steps) / config.epochs)
        for name, value in task.step(sampler(at.epoch, at.step, engine.rank, engine.world)).items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        at.step += 1
        tracker.step(plan.stage, at.epoch, at.step)
        if at.step < sampler.steps and (engine.world == 1 or at.step % _CHECK == 0):
            request = _request(tracker, fitting.checkpoints, engine)
            if request:
                fitting.save(sums)
            if request == _END:
                raise KeyboardInterrupt
            if request == _STOP:
                raise Stopped(f"{plan.stage}: stopped in epoch {at.epoch}")
    seconds = time.perf_counter() - started
    totals = engine.totals({name: float(x) for name, x in sums.items()})
    at.sums = {}
    report = {name: total / sampler.steps for name, total in totals.items()}
    share = (sampler.steps - first) / sampler.steps
    report["lr"] = config.lr * task.dense.rate
    return report | {"interactions/s": share * len(sampler.user) / seconds if seconds else 0.0}


def _request(tracker: Tracker, checkpoints: Checkpoints | None, engine: Engine) -> int:
    """What rank 0 asks for now, on every worker."""
    request = 0
    if engine.rank_zero:
        overdue = checkpoints is not None and checkpoints.overdue()
        request = _STOP if tracker.stopped else _END if tracker.interrupted() else _SAVE if overdue else 0
    return engine.largest(request)


def log_epoch(tracker: Tracker, engine: Engine, stage: str, epoch: int, report: dict[str, float]) -> bool:
    """Log an epoch; whether a callback of rank 0 ended the run."""
    stopped = False
    try:
        tracker.log(stage, epoch, report)
    except Stopped:
        stopped = True
    return bool(engine.largest(int(stopped)))
