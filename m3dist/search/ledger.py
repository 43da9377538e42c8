"""What is known of every trial, kept as a file of events that survives whatever happens to the search.

An event is one line, appended and flushed before anything is built on it; reading the file again gives the same state
as having lived through it, rungs included. A last line cut short by a crash is dropped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3dist import checksums
from m3dist.search.dimensions import Values
from m3dist.search.rungs import Clock, Rungs
from m3dist.search.space import Plan
from m3dist.storage import owner
from m3dist.storage.folders import Folder

OPEN = ("waiting", "running")  # the states of a trial that has not ended


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

    @property
    def folder(self) -> Path:
        """Of its config, checkpoints and logs, inside the search's."""
        return Path("trials") / self.id


class Ledger:
    """All trials of a search, those of earlier runs included.

    trials: by id. hopeless: why no other trial should train a stage, by the stage's key. best_so_far: (seconds, epochs
    of all trials, best value in the last stage), whenever that value changed. finals: the results of the chosen
    trial's config by seed. costs: epochs and seconds that a trial trained a stage for, by the stage's key and the
    trial. Raises ValueError when the folder holds another search.
    """

    def __init__(self, plan: Plan):
        self.plan, self.clock = plan, Clock(plan.extremes(), plan.dataset)
        scheduler = plan.search.scheduler
        self.rungs: Rungs | None = None
        if scheduler.kind == "asha":
            self.rungs = Rungs(self.clock, plan.search.mode, scheduler.grace, scheduler.reduction)
        self.trials: dict[str, Trial] = {}
        self.hopeless: dict[str, str] = {}
        self.best_so_far: list[tuple[float, int, float]] = []
        self.finals: dict[int, dict[str, Any]] = {}
        self.chosen: str | None = None
        self.costs: dict[str, dict[str, tuple[int, float]]] = {}
        self._earlier = 0.0  # seconds of earlier runs
        self._started = time.monotonic()
        check_owner(plan)
        path = plan.out / "trials.jsonl"
        if path.exists():
            self._replay(path)
        self._file = path.open("a")

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all runs of the search."""
        return self._earlier + time.monotonic() - self._started

    @property
    def epochs(self) -> int:
        """Epochs that all trials trained."""
        return sum(trial.epochs for trial in self.trials.values())

    def record(self, event: str, **values: Any) -> None:
        """Write an event down and take it in: proposed, started, result, cut, ended, chosen or final."""
        line = {"event": event, "at": round(self.seconds, 3), **values}
        self._file.write(json.dumps(checksums.stamped(line)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._apply(line)

    def close(self) -> None:
        self._file.close()

    def _replay(self, path: Path) -> None:
        """Take in the events of earlier runs; trials that were running then wait to go on."""
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                event = checksums.checked(json.loads(line))
                self._earlier = event["at"]
                self._apply(event)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {number}: damaged ({error}); delete it and the lines after it to go on from there"
                ) from None
        if whole != text:
            Folder(path.parent).write_text(path.name, whole)
        for trial in self.trials.values():
            if trial.status == "running":
                trial.status = "waiting"

    def _apply(self, event: dict[str, Any]) -> None:
        values = {name: value for name, value in event.items() if name not in ("event", "at")}
        getattr(self, f"_on_{event['event']}")(**values)
        if event["event"] in ("result", "ended"):
            self._note_best(event["at"])

    def _on_proposed(self, trial: str, **point: Any) -> None:
        self.trials[trial] = Trial(trial, **point)

    def _on_started(self, trial: str) -> None:
        self.trials[trial].status = "running"

    def _on_result(self, trial: str, step: int, metric: float | None, **reached: Any) -> None:
        """reached: stage, and the epochs and seconds of this trial so far. metric: the best so far in this stage."""
        one = self.trials[trial]
        cost = self.costs.setdefault(one.keys[reached["stage"]], {})
        epochs, spent = cost.get(trial, (0, 0.0))
        cost[trial] = (epochs + reached["epochs"] - one.epochs, spent + reached["seconds"] - one.seconds)
        one.stage, one.epochs, one.seconds = reached["stage"], reached["epochs"], reached["seconds"]
        one.epoch = self.clock.epoch(one.stage, step)
        if metric is not None:
            one.metric, one.measured = metric, one.stage
            one.curve.append((self.clock.position(one.stage, one.epoch), metric))
        if self.rungs is not None and one.status in OPEN:
            rung = self.rungs.judge(trial, one.stage, one.epoch, metric)
            if rung is not None and not one.reason:
                one.reason = str(rung)
                if self.plan.search.reuse.on:
                    self.hopeless[one.keys[rung.stage]] = one.reason

    def _on_cut(self, trial: str, reason: str) -> None:
        self.trials[trial].reason = reason

    def _on_ended(self, trial: str, **end: Any) -> None:
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
            self.hopeless[one.keys[one.stage or self.plan.stages[0]]] = one.reason

    def _on_chosen(self, trial: str) -> None:
        if trial != self.chosen:
            self.chosen, self.finals = trial, {}

    def _on_final(self, seed: int, result: dict[str, Any]) -> None:
        self.finals[seed] = result

    def _note_best(self, at: float) -> None:
        best = self.best()
        if best is not None and best.metric is not None:
            last = self.best_so_far[-1][2] if self.best_so_far else None
            if best.metric != last:
                self.best_so_far.append((at, self.epochs, best.metric))

    def best(self) -> Trial | None:
        """The best of the trials that were measured in the last stage; None while there is none.

        A trial's value is that of its best epoch so far, which is what training keeps; failed trials do not count.
        """
        last = self.plan.stages[-1]
        return self.best_of(t for t in self.trials.values() if t.measured == last and t.status != "failed")

    def best_of(self, trials: Iterable[Trial]) -> Trial | None:
        """The first of the trials with the best value; None where none has one."""
        measured = [(trial.metric, trial) for trial in trials if trial.metric is not None]
        pick = max if self.plan.search.mode == "max" else min
        return pick(measured, key=lambda pair: pair[0])[1] if measured else None

    def saved(self, trial: Trial) -> tuple[int, float]:
        """Epochs and seconds that the stages a trial reused took those who trained them."""
        costs = [max(self.costs.get(trial.keys[stage], {}).values(), default=(0, 0.0)) for stage in trial.reused]
        return sum(epochs for epochs, _ in costs), sum(seconds for _, seconds in costs)

    def counts(self) -> dict[str, int]:
        """Trials by status."""
        return dict(Counter(trial.status for trial in self.trials.values()))

    def rows(self) -> list[dict[str, Any]]:
        """One row per trial, as in search.parquet; a dimension that was not used is null."""
        kept = [f.name for f in dataclasses.fields(Trial) if f.name not in ("values", "keys", "curve", "index")]
        out = []
        for trial in self.trials.values():
            row = {name: getattr(trial, name) for name in kept}
            row["position"] = trial.curve[-1][0] if trial.curve else 0
            row["saved_epochs"], row["saved_seconds"] = self.saved(trial)
            out.append(row | {f"value.{name}": trial.values.get(name) for name in self.plan.space})
        return out


def check_owner(plan: Plan) -> None:
    """Raises ValueError unless the folder is new or holds this search; a new one is marked as this search's."""
    path, mine = plan.out / "search.json", plan.identity()
    if path.exists():
        if Folder(plan.out).read_json(path.name).get("identity") != mine:
            raise ValueError(
                f"{plan.out}: belongs to another search (its space, base config, data, metric, scheduler, searcher "
                f"or seed differ); choose another out=, or delete the folder"
            )
        return
    if plan.out.exists() and any(not _early(x.name) for x in plan.out.iterdir()):
        raise ValueError(f"{plan.out}: is not empty and holds no search; choose another out=")
    Folder(plan.out).write_json(path.name, {"identity": mine, **plan.search.model_dump(mode="json")})


def _early(name: str) -> bool:
    """Whether a search that was killed before it wrote search.json left a file or folder of this name."""
    return name in (owner.FOLDER, ".search.json.partial") or "data-" in name
