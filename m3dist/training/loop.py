"""The only training loop: step, evaluate, keep the best, stop early, checkpoint, log."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from m3dist.config import Fit
from m3dist.data.draws import Draws
from m3dist.distributed.engine import Dense, Engine
from m3dist.distributed.rows import RowTables
from m3dist.section import Section
from m3dist.storage.checkpoints import Checkpoints, Rows, Saved
from m3dist.training.callbacks import Stopped
from m3dist.training.divergence import suspect
from m3dist.training.steps import Rate, Stepper, Sums
from m3dist.training.tracking import Tracker

_CHECK = 16  # steps between workers' agreeing on whether to save or stop; a worker alone looks after every step
_SAVE, _END, _STOP = 1, 2, 3  # what rank 0 may ask for between steps


@dataclass(frozen=True)
class Plan:
    """Which stage is trained, how, and the validation metric that selects. model: further values of what is trained."""

    stage: str
    settings: Fit
    metric: str
    model: tuple[Section, ...] = ()

    def diverged(self, what: str, epoch: int) -> FloatingPointError:
        """The error for a fit that diverged, which names the likeliest cause."""
        cause = suspect(self.stage, self.settings, *self.model)
        return FloatingPointError(f"{self.stage}: {what} in epoch {epoch}; lower {cause}")


class Task(Protocol):
    """What the loop trains.

    draws: where it stands, and what the next step sees. dense: parameters outside tables. rates: further learning rates
    that fall over the fit. fixed: whether a step has the same shapes each time and never asks the host, so that it can
    be captured.
    """

    draws: Draws
    dense: Dense
    tables: dict[str, RowTables]
    rates: list[Rate]
    fixed: bool

    def step(self) -> dict[str, Tensor]:
        """The optimiser step at which `draws` stands; this worker's share of the loss and its terms."""

    def evaluate(self) -> dict[str, float]:
        """Metrics on the validation split, the same on every worker."""


@dataclass
class Progress:
    """Where a fit stands: the next step to take, and what was best so far."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch's steps so far, over all workers
    best: dict[str, float] = field(default_factory=dict)  # metrics of the epoch that is kept, and its number
    peak: float | None = None  # the best validation metric
    waited: int = 0  # evaluations since the peak


class Fitting:
    """A task under training, with what a checkpoint needs of it."""

    def __init__(self, task: Task, checkpoints: Checkpoints | None):
        self.task, self.checkpoints = task, checkpoints
        self.engine: Engine = task.dense.engine
        self.at, self.sums = Progress(), Sums()
        self.kept = self.weights()
        self._saved_best = ""
        saved = checkpoints.latest() if checkpoints else None
        if checkpoints and saved:
            self._load(saved)
            self.at = Progress(**saved.meta["progress"])
            if saved.meta["needs"]:
                self._saved_best = saved.meta["needs"][0]
                best = checkpoints.open(self._saved_best)
                for name, (_, table) in self.rows().items():
                    best.read(name, self.kept[name], table.low)
                self.kept |= best.tensors()

    def rows(self) -> dict[str, tuple[Tensor, RowTables]]:
        """Every member's live rows of every table, of sharded tables those of this worker, and the table."""
        return {
            f"{name}/{m}": (x, table) for name, table in self.task.tables.items() for m, x in enumerate(table.weight)
        }

    def weights(self) -> dict[str, Tensor]:
        """Copies of what the model is made of; every worker must call it."""
        return self.task.dense.state() | {name: x.clone() for name, (x, _) in self.rows().items()}

    def keep(self) -> None:
        """Make the weights of now the best; tables are copied over the last best, so that there is never a third."""
        dense = self.task.dense.state()
        for name, (x, _) in self.rows().items():
            self.kept[name].copy_(x)
        self.kept |= dense

    def restore(self, weights: dict[str, Tensor]) -> None:
        rows = self.rows()
        self.task.dense.load({name: x for name, x in weights.items() if name not in rows})
        for name, (x, _) in rows.items():
            x.copy_(weights[name])

    def save(self) -> None:
        """Write a checkpoint of this very moment."""
        if self.checkpoints is None:
            return
        tables, rows = self.task.tables, self.rows()
        self.at.sums = self.engine.totals(self.sums.read())
        best = f"best-{self.at.best['epoch']:05.0f}" if self.at.best else ""
        if best and best != self._saved_best:
            dense = {name: x for name, x in self.kept.items() if name not in rows}
            self.checkpoints.save(best, {}, dense, _rows({x: (self.kept[x], table) for x, (_, table) in rows.items()}))
            self._saved_best = best
        tensors = {f"model/{name}": x for name, x in self.task.dense.state().items()}
        tensors |= {f"adam/{name}": x for name, x in self.task.dense.moments().items()}
        kept = {f"{name}/{key}": (x, table) for name, table in tables.items() for key, x in table.parts().items()}
        name = f"{self.at.epoch:05d}-{self.at.step:07d}"
        meta = {"progress": dataclasses.asdict(self.at), "steps": {name: float(x.steps) for name, x in tables.items()}}
        self.checkpoints.save(name, meta, tensors, _rows(kept), [best] if best else [])

    def _load(self, saved: Saved) -> None:
        tensors = saved.tensors()

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

        self.task.dense.load(under("model/"))
        self.task.dense.load_moments(under("adam/"))
        for name, table in self.task.tables.items():
            for key, x in table.parts().items():
                saved.read(f"{name}/{key}", x, table.low)
            table.steps.fill_(saved.meta["steps"][name])


def _rows(kept: dict[str, tuple[Tensor, RowTables]]) -> Rows:
    """Rows of tables, each with its table, as a checkpoint takes them."""
    whole, parts = ({name: x for name, (x, table) in kept.items() if table.sharded == part} for part in (False, True))
    return Rows(whole, parts)


def fit(task: Task, plan: Plan, tracker: Tracker, checkpoints: Checkpoints | None = None) -> dict[str, float]:
    """Train for at most the plan's epochs and leave the task at its best validation epoch, whose metrics are returned.

    Of epochs that are level with the best (`Fit.level`) the last is kept: its rate was lower, and what it gained on
    validation data is less by chance.

    Goes on from the latest of `checkpoints`, in the middle of an epoch too, with the numbers that an uninterrupted
    run has. Raises FloatingPointError when the loss stops being finite, Stopped when a callback ends the run, and
    KeyboardInterrupt, after saving, when the tracker is interrupted.
    """
    stage, config, metric, n = plan.stage, plan.settings, plan.metric, _visited(task.draws, plan.settings)
    epochs, interval = config.length(n), config.interval(n)
    fitting = Fitting(task, checkpoints)
    at, engine = fitting.at, fitting.engine
    if epochs == 0:
        return task.evaluate()
    tracker.begin(stage, checkpoints.key if checkpoints else "", at.epoch)
    take = stepper(task, config, fitting.sums)
    while at.epoch < epochs and not (config.patience and at.waited >= config.patience):
        report = _epoch(task, plan, fitting, take, tracker)
        if not math.isfinite(report["loss"]):
            raise plan.diverged(f"the loss is {report['loss']}", at.epoch)
        epoch, last = at.epoch, at.epoch == epochs - 1
        if (epoch + 1) % interval == 0 or last:
            try:
                metrics = task.evaluate()
            except FloatingPointError:
                raise plan.diverged("scores are NaN", epoch) from None
            better = at.peak is None or metrics[metric] > at.peak
            at.peak = metrics[metric] if at.peak is None else max(at.peak, metrics[metric])
            at.waited = 0 if better else at.waited + 1
            if better or metrics[metric] >= at.peak - abs(at.peak) * config.level:
                at.best = {**metrics, "epoch": epoch}
                fitting.keep()
            report |= metrics
        at.epoch, at.step = epoch + 1, 0
        note = f"loss {report['loss']:.4f}  best {metric} {at.best.get(metric, math.nan):.4f}"
        tracker.progress(stage, epochs, epoch + 1, f"{note}  {report['interactions/s']:,.0f}/s")
        stopped = log_epoch(tracker, engine, stage, epoch, report)
        request = 0 if last else _request(tracker, checkpoints, engine)  # an epoch may be too short to ask inside it
        if checkpoints and not last and (stopped or request or checkpoints.due_after(epoch)):
            fitting.save()
        if stopped or request == _STOP:
            raise Stopped(f"{stage}: stopped after epoch {epoch}")
        if request == _END:
            raise KeyboardInterrupt
    take.close()
    tracker.progress(stage, at.epoch, at.epoch, f"best {metric} {at.best.get(metric, math.nan):.4f}")
    fitting.restore(fitting.kept)
    return at.best


def _visited(draws: Draws, settings: Fit) -> int:
    """Interactions of an epoch, in whole batches: a sample can be a user's history, which holds more than one."""
    return draws.steps * settings.batch_size


def stepper(task: Task, settings: Fit, sums: Sums | None = None) -> Stepper:
    """One step after the other from where `draws` stands: the learning rate of its place in the fit, the step, and what
    it reports, which is added to `sums`."""
    draws = task.draws
    total = settings.length(_visited(draws, settings)) * draws.steps
    kept = sums or Sums()

    def one() -> None:
        if settings.decay == "linear":  # from where the fit stands, so that a resumed run has the same
            left = 1 - draws.number / total
            task.dense.scale(left, 1 - draws.number_here / total)
            for rate in task.rates:
                rate.scale(left)
        kept.add(task.step())
        draws.advance()

    why_not = "" if task.fixed else "the shapes of a step depend on its data"
    return Stepper(one, task.dense.engine, why_not or task.dense.why_not)


def _epoch(task: Task, plan: Plan, fitting: Fitting, take: Stepper, tracker: Tracker) -> dict[str, float]:
    """The rest of an epoch, from the step at which the fit stands; the mean of every term and the throughput."""
    at, engine, draws = fitting.at, fitting.engine, task.draws
    fitting.sums.start(at.sums if engine.rank_zero else {})
    draws.seek(at.epoch, at.step)
    started, first = time.perf_counter(), at.step
    while at.step < draws.steps:
        take()
        at.step += 1
        tracker.step(plan.stage, at.epoch, at.step)
        if at.step < draws.steps and (engine.world == 1 or at.step % _CHECK == 0):
            request = _request(tracker, fitting.checkpoints, engine)
            if request:
                fitting.save()
            if request == _END:
                raise KeyboardInterrupt
            if request == _STOP:
                raise Stopped(f"{plan.stage}: stopped in epoch {at.epoch}")
    totals = engine.totals(fitting.sums.read())
    seconds = time.perf_counter() - started
    at.sums = {}
    fitting.sums.start({})
    report = {name: total / draws.steps for name, total in totals.items()}
    report["lr"] = float(task.rates[0].now) if task.rates else task.dense.lr
    share = (draws.steps - first) / draws.steps
    return report | {"interactions/s": share * draws.pairs.total / seconds if seconds else 0.0}


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
