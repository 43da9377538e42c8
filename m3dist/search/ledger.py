"""What is known of every trial, kept as a file of events that survives whatever happens to the search.

An event is one line, appended and flushed before anything is built on it; reading the file again gives the same state
as having lived through it, rungs included. A last line cut short by a crash is dropped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3dist.search.rungs import Clock, Rungs
from m3dist.search.space import Plan, Values

OPEN = ("waiting", "running")


@dataclass
class Trial:
    """One point of the space and what became of it."""

    id: str
    values: Values
    keys: dict[str, str]  # the artifact key of every stage
    index: int  # among the searcher's proposals
    status: str = "waiting"  # running, finished, stopped (by a rung), cut (by the budget), failed
    reason: str = ""
    stage: str = ""  # reached
    epoch: int = 0  # of that stage
    epochs: int = 0  # trained by this trial itself
    seconds: float = 0.0
    metric: float | None = None  # best on validation data in `measured`
    measured: str = ""  # the stage that `metric` was measured in
    reused: list[str] = field(default_factory=list)  # stages that it found done
    curve: list[tuple[int, float]] = field(default_factory=list)  # (position, best so far in its stage)


class Ledger:
    """Raises ValueError when the folder holds another search."""

    def __init__(self, plan: Plan):
        self.plan, self.clock = plan, Clock(plan.extremes())
        scheduler = plan.search.scheduler
        self.rungs: Rungs | None = None
        if scheduler.kind == "asha":
            self.rungs = Rungs(self.clock, plan.search.mode, scheduler.grace, scheduler.reduction)
        self.trials: dict[str, Trial] = {}
        self.dead: dict[str, str] = {}  # stage key -> why no other trial should train that stage
        self.best_so_far: list[tuple[float, int, float]] = []  # (seconds, epochs, best in the last stage) at changes
        self.finals: dict[int, dict[str, Any]] = {}  # seed -> result of the chosen config
        self.chosen: str | None = None
        self._earlier = 0.0  # seconds of former sittings
        self._started = time.monotonic()
        path = plan.out / "trials.jsonl"
        self._own(plan)
        if path.exists():
            text = path.read_text()
            whole = text[: text.rfind("\n") + 1]
            for line in whole.splitlines():
                event = json.loads(line)
                self._earlier = event["at"]
                self._apply(event)
            if whole != text:
                path.write_text(whole)
        for trial in self.trials.values():
            if trial.status == "running":
                trial.status = "waiting"
        self._file = path.open("a")

    def _own(self, plan: Plan) -> None:
        path, mine = plan.out / "search.json", plan.identity()
        if path.exists():
            if json.loads(path.read_text())["identity"] != mine:
                raise ValueError(
                    f"{plan.out}: belongs to another search (its space, base config, data, metric, scheduler, searcher "
                    f"or seed differ); choose another out=, or delete the folder"
                )
            return
        if plan.out.exists() and any(x.name not in ("claims",) and "data-" not in x.name for x in plan.out.iterdir()):
            raise ValueError(f"{plan.out}: is not empty and holds no search; choose another out=")
        plan.out.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(".search.json")
        aside.write_text(json.dumps({"identity": mine, **plan.search.model_dump(mode="json")}, indent=2) + "\n")
        aside.replace(path)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all sittings."""
        return self._earlier + time.monotonic() - self._started

    @property
    def epochs(self) -> int:
        return sum(trial.epochs for trial in self.trials.values())

    def record(self, event: str, **values: Any) -> None:
        line = {"event": event, "at": round(self.seconds, 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._apply(line)

    def close(self) -> None:
        self._file.close()

    def _apply(self, event: dict[str, Any]) -> None:
        getattr(self, f"_on_{event['event']}")(**{k: v for k, v in event.items() if k != "event"})

    def _on_proposed(self, at: float, trial: str, index: int, values: Values, keys: dict[str, str]) -> None:
        self.trials[trial] = Trial(trial, values, keys, index)

    def _on_started(self, at: float, trial: str) -> None:
        self.trials[trial].status = "running"

    def _on_result(
        self, at: float, trial: str, stage: str, step: int, epochs: int, seconds: float, metric: float | None
    ) -> None:
        """epochs, seconds: of this trial so far. metric: the best so far in this stage, where it is measured."""
        one = self.trials[trial]
        one.stage, one.epoch, one.epochs, one.seconds = stage, self.clock.epoch(stage, step), epochs, seconds
        if metric is not None:
            one.metric, one.measured = metric, stage
            one.curve.append((self.clock.position(stage, one.epoch), metric))
            self._note(at)
        if self.rungs is not None and one.status in OPEN:
            stop = self.rungs.judge(trial, stage, one.epoch, metric)
            if stop and not one.reason:
                one.reason = stop
                if self.plan.search.reuse.on:
                    self.dead[one.keys[stop.rsplit(" ", 1)[1]]] = stop

    def _on_cut(self, at: float, trial: str, reason: str) -> None:
        self.trials[trial].reason = reason

    def _on_ended(self, at: float, trial: str, **end: Any) -> None:
        one = self.trials[trial]
        for name, value in end.items():
            if value is not None:
                setattr(one, name, value)
        if one.status == "finished":
            one.reason = ""
            one.measured = self.plan.stages[-1]
            if self.rungs is not None:
                self.rungs.complete(trial)
        if one.status == "failed" and self.plan.search.reuse.on and one.reason.startswith("FloatingPointError"):
            self.dead[one.keys[one.stage or self.plan.stages[0]]] = one.reason
        self._note(at)

    def _on_chosen(self, at: float, trial: str) -> None:
        if trial != self.chosen:
            self.chosen, self.finals = trial, {}

    def _on_final(self, at: float, seed: int, result: dict[str, Any]) -> None:
        self.finals[seed] = result

    def _note(self, at: float) -> None:
        best = self.best()
        if best is not None and best.metric is not None:
            last = self.best_so_far[-1][2] if self.best_so_far else None
            if best.metric != last:
                self.best_so_far.append((at, self.epochs, best.metric))

    def better(self, a: float, b: float) -> bool:
        return a > b if self.plan.search.mode == "max" else a < b

    def best(self) -> Trial | None:
        """The best of the trials that were measured in the last stage; of others only where there is none.

        A trial's value is that of its best epoch so far, which is what training keeps; failed trials do not count.
        """
        last = self.plan.stages[-1]
        known = [t for t in self.trials.values() if t.metric is not None and t.status != "failed"]
        known = [t for t in known if t.measured == last]
        out: Trial | None = None
        for trial in known:
            if out is None or self.better(trial.metric, out.metric):  # type: ignore[arg-type]
                out = trial
        return out

    def counts(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for trial in self.trials.values():
            out[trial.status] = out.get(trial.status, 0) + 1
        return out

    def rows(self) -> list[dict[str, Any]]:
        """One row per trial, as in search.parquet; a dimension that was not used is null."""
        kept = [f.name for f in dataclasses.fields(Trial) if f.name not in ("values", "keys", "curve", "index")]
        out = []
        for trial in self.trials.values():
            row = {name: getattr(trial, name) for name in kept}
            row["position"] = trial.curve[-1][0] if trial.curve else 0
            out.append(row | {f"value.{name}": trial.values.get(name) for name in self.plan.space})
        return out


def folder(plan: Plan, trial: str) -> Path:
    return plan.out / "trials" / trial
