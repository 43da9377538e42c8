"""What a user's own code can hear of a run, and how it ends one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Stopped(Exception):
    """Raised by a callback to end a run early; what was reported stays, and the same call goes on from there."""


class Callback:
    """Subclass it and override what you need. With workers, callbacks run in the process that started the run.

    Any of them may raise `Stopped`.
    """

    def on_stage_begin(self, stage: str) -> None:
        """A stage starts, or goes on from a checkpoint."""

    def on_step(self, stage: str, epoch: int, step: int) -> None:
        """An optimiser step was taken. With workers it is told about twice a second, not of every step."""

    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        """An epoch, or a round of stage 2, ended: every loss term, metric and throughput."""

    def on_evaluate(self, stage: str, epoch: int, metrics: dict[str, float]) -> None:
        """Metrics on validation data, or in the stage `test` on test data."""

    def on_end(self, result: dict[str, Any]) -> None:
        """The run is done; `result` is what result.json holds."""


class Callbacks:
    """Tells several callbacks what a run reports."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = list(callbacks)
        self._stage = ""

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def begin(self, stage: str) -> None:
        if stage != self._stage:
            self._stage = stage
            for one in self.callbacks:
                one.on_stage_begin(stage)

    def step(self, stage: str, epoch: int, step: int) -> None:
        for one in self.callbacks:
            one.on_step(stage, epoch, step)

    def __call__(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        """An epoch's values."""
        self.begin(stage)
        metrics = {name: value for name, value in values.items() if "@" in name}
        for one in self.callbacks:
            one.on_epoch(stage, epoch, values)
            if metrics:
                one.on_evaluate(stage, epoch, metrics)

    def end(self, result: dict[str, Any]) -> None:
        for one in self.callbacks:
            one.on_end(result)
