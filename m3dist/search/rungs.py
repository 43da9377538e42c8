"""Which trials go on: ASHA (Li et al., MLSys 2020) inside every stage that reports the metric.

Epochs are counted through all stages: each stage has room for the most epochs that the search lets it have, so a
position means the same stage and epoch in every trial, whether or not a stage before it stopped early or was reused.
A trial that leaves a stage early is held against all the rungs it jumps over, with its best value; a trial that
reuses a stage was not judged there, and is next judged in the stage that it trains.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from m3dist import pipeline
from m3dist.config import Config
from m3dist.method import registry


def epochs_per_step(config: Config, stage: str) -> int:
    """Passes over the interactions behind one logged step: a round of stage 2 trains environments and masks."""
    spec = registry.model(config.model).stage(stage)
    return spec.passes_per_step(getattr(config, spec.section))


def _steps(config: Config, stage: str) -> int:
    spec = registry.model(config.model).stage(stage)
    return getattr(getattr(config, spec.section), spec.steps)


class Clock:
    """Positions of (stage, step) among the epochs of any trial whose config is one of `configs`."""

    def __init__(self, configs: Iterable[Config]):
        configs = list(configs)
        stages = pipeline.planned(configs[0], test=False)
        self.per_step = {stage: max(epochs_per_step(c, stage) for c in configs) for stage in stages}
        self.length = {stage: max(_steps(c, stage) for c in configs) * self.per_step[stage] for stage in stages}
        self.total = sum(self.length.values())
        spec = registry.model(configs[0].model)
        self.reports = [stage for stage in stages if spec.stage(stage).validates]  # others have no ranking to measure

    def epoch(self, stage: str, step: int) -> int:
        """Epochs of the stage behind a trial that logged its step `step` (from 0)."""
        return (step + 1) * self.per_step[stage]

    def position(self, stage: str, epoch: int) -> int:
        """Epochs behind a trial after `epoch` epochs of a stage, those of earlier stages in full."""
        before = 0
        for name, length in self.length.items():
            if name == stage:
                return before + epoch
            before += length
        raise KeyError(stage)


class Rungs:
    """Judges trials by their best value so far at rungs grace * reduction^k of every stage that reports."""

    def __init__(self, clock: Clock, mode: str, grace: int, reduction: float):
        self.stages: dict[str, AsyncHyperBandScheduler] = {}
        self.milestones: dict[str, list[int]] = {}
        for stage, length in clock.length.items():
            if stage not in clock.reports or not length:
                continue
            least = min(grace, length)
            self.stages[stage] = AsyncHyperBandScheduler(
                time_attr="epoch", metric="metric", mode=mode, max_t=length, grace_period=least,
                reduction_factor=reduction, stop_last_trials=False,
            )  # fmt: skip
            self.milestones[stage] = []
            at = float(least)
            while at <= length:
                self.milestones[stage].append(int(-(-at // 1)))
                at *= reduction
        self._left: dict[str, dict[str, int]] = {}  # trial -> stage -> rungs passed
        self._best: dict[str, tuple[str, float]] = {}  # trial -> stage in which it reports now, best value there

    def judge(self, trial: str, stage: str, epoch: int, best: float | None) -> str:
        """Where the trial should stop, as "rung at epoch N of STAGE", or "". best: None where not measured."""
        if trial in self._best and self._best[trial][0] != stage:
            before, value = self._best.pop(trial)
            if stop := self._pass(trial, before, self.milestones[before][-1], value):
                return stop
        if best is None or stage not in self.stages:
            return ""
        self._best[trial] = (stage, best)
        return self._pass(trial, stage, epoch, best)

    def complete(self, trial: str) -> None:
        """A trial ended by itself: what it reached counts at the rungs that it needed no epochs for."""
        if trial in self._best:
            stage, value = self._best.pop(trial)
            self._pass(trial, stage, self.milestones[stage][-1], value)

    def _pass(self, trial: str, stage: str, epoch: int, value: float) -> str:
        passed = self._left.setdefault(trial, {})
        stop = ""
        for rung in self.milestones[stage][passed.get(stage, 0) :]:
            if rung > epoch:
                break
            asha, who = self.stages[stage], SimpleNamespace(trial_id=trial)
            if not passed.get(stage):
                asha.on_trial_add(None, who)  # type: ignore[arg-type]
            passed[stage] = passed.get(stage, 0) + 1
            result: dict[str, Any] = {"epoch": rung, "metric": value}
            if not stop and asha.on_trial_result(None, who, result) == "STOP":  # type: ignore[arg-type]
                stop = f"rung at epoch {rung} of {stage}"
        return stop
