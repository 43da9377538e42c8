"""Which trials go on: ASHA (Li et al., MLSys 2020) inside every stage that reports the metric.

Epochs are counted through all stages: each stage has room for the most epochs that the search lets it have, so a
position means the same stage and epoch in every trial, whether or not a stage before it stopped early or was reused.
A trial that leaves a stage early is held against all the rungs it jumps over, with its best value; a trial that
reuses a stage was not judged there, and is next judged in the stage that it trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.search import stages


@dataclass(frozen=True)
class Rung:
    """Where a trial is compared with those that got there before it."""

    stage: str
    epoch: int  # of the stage

    def __str__(self) -> str:
        return f"rung at epoch {self.epoch} of {self.stage}"


class Clock:
    """Positions of (stage, step) among the epochs of any trial whose config is one of `configs`."""

    def __init__(self, configs: Iterable[Config], dataset: Dataset):
        configs = list(configs)
        planned = stages.planned(configs[0])
        self.length = {stage: max(stages.length(c, stage, dataset) for c in configs) for stage in planned}
        self.total = sum(self.length.values())
        self.measured = {stage for stage in planned if stages.measured(configs[0], stage)}

    def epoch(self, stage: str, step: int) -> int:
        """Epochs of the stage behind a trial that logged its step `step` (from 0)."""
        return step + 1

    def position(self, stage: str, epoch: int) -> int:
        """Epochs behind a trial after `epoch` epochs of a stage, those of earlier stages in full."""
        planned = list(self.length)
        return sum(self.length[name] for name in planned[: planned.index(stage)]) + epoch


class Rungs:
    """Judges trials by their best value so far at rungs grace * reduction^k of every stage that reports.

    milestones: the epochs of a stage's rungs.
    """

    def __init__(self, clock: Clock, mode: str, grace: int, reduction: float):
        self._asha: dict[str, AsyncHyperBandScheduler] = {}
        self.milestones: dict[str, list[int]] = {}
        for stage, length in clock.length.items():
            if stage not in clock.measured or not length:
                continue
            least = min(grace, length)
            self._asha[stage] = AsyncHyperBandScheduler(
                time_attr="epoch", metric="metric", mode=mode, max_t=length, grace_period=least,
                reduction_factor=reduction, stop_last_trials=False,
            )  # fmt: skip
            self.milestones[stage] = []
            at = float(least)
            while at <= length:
                self.milestones[stage].append(math.ceil(at))
                at *= reduction
        self._passed: dict[tuple[str, str], int] = {}  # (trial, stage) -> rungs behind it
        self._best: dict[str, tuple[str, float]] = {}  # trial -> stage in which it reports now, best value there

    def judge(self, trial: str, stage: str, epoch: int, best: float | None) -> Rung | None:
        """The rung at which the trial should stop, if any.

        epoch: of the stage. best: the trial's best value in it; None where the stage is not measured.
        """
        if trial in self._best and self._best[trial][0] != stage:
            before, value = self._best.pop(trial)
            if stop := self._pass(trial, Rung(before, self.milestones[before][-1]), value):
                return stop
        if best is None or stage not in self._asha:
            return None
        self._best[trial] = (stage, best)
        return self._pass(trial, Rung(stage, epoch), best)

    def complete(self, trial: str) -> None:
        """A trial ended by itself: what it reached counts at the rungs that it needed no epochs for."""
        if trial in self._best:
            stage, value = self._best.pop(trial)
            self._pass(trial, Rung(stage, self.milestones[stage][-1]), value)

    def _pass(self, trial: str, reached: Rung, value: float) -> Rung | None:
        """Hold a trial's value against all rungs up to where it is; the first that it should not have passed."""
        asha, who = self._asha[reached.stage], SimpleNamespace(trial_id=trial)
        passed = self._passed.get((trial, reached.stage), 0)
        stop = None
        for epoch in self.milestones[reached.stage][passed:]:
            if epoch > reached.epoch:
                break
            if not passed:
                asha.on_trial_add(None, who)  # type: ignore[arg-type]
            passed += 1
            result: dict[str, Any] = {"epoch": epoch, "metric": value}
            if not stop and asha.on_trial_result(None, who, result) == "STOP":  # type: ignore[arg-type]
                stop = Rung(reached.stage, epoch)
        self._passed[trial, reached.stage] = passed
        return stop
