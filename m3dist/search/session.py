"""One run of a search: which trial starts next, what a report means, and when the search is over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m3dist.search import report, resources, searchers
from m3dist.search.ledger import OPEN, Ledger, Trial
from m3dist.search.space import Plan
from m3dist.search.table import Table
from m3dist.search.trial import Job, Progress
from m3dist.storage.folders import Folder


class Session:
    """The state of a search that Ray Tune's hooks share.

    interrupted: whether somebody wants the search to end now. over: why no more trials start; empty while they do.
    running: the id of our trial by that of Ray Tune's.
    """

    def __init__(self, plan: Plan, ledger: Ledger, table: Table, interrupted: Callable[[], bool]):
        self.plan, self.ledger, self.table, self.interrupted = plan, ledger, table, interrupted
        self.searcher = searchers.find(plan.search.searcher)(plan, ledger)
        self.over = ""
        self.running: dict[str, str] = {}

    def __deepcopy__(self, memo: dict) -> Session:
        """Ray Tune copies and pickles what it is given; there is one state, and the ledger is what is kept of it."""
        return self

    def __reduce__(self) -> tuple:
        return str, ("session",)

    def complete(self) -> bool:
        """Whether nothing is left to train: no trial waits, and the budget allows no other."""
        waiting = any(trial.status == "waiting" for trial in self.ledger.trials.values())
        self.check_budget()
        return not waiting and (bool(self.over) or self._enough())

    def _enough(self) -> bool:
        most = self.plan.search.budget.trials
        return most is not None and len(self.ledger.trials) >= most

    def folder(self, trial: Trial) -> Path:
        """The folder that a trial trains in."""
        return self.plan.out / trial.folder

    def job(self, trial: Trial, threads: int) -> Job:
        """What the process of a trial is told, which may have trained before."""
        config = self.plan.config(trial.values).model_copy(update={"out": str(self.folder(trial))})
        if not self.plan.search.reuse.on:
            config = config.model_copy(update={"artifacts": None})
        best = trial.metric if trial.measured == trial.stage else None
        return Job(
            trial=trial.id, config=resources.settled(config), metric=self.plan.metric, mode=self.plan.search.mode,
            share=self.plan.search.reuse.on, threads=threads,
            before=Progress(epochs=trial.epochs, seconds=trial.seconds, stage=trial.stage, metric=best),
        )  # fmt: skip

    def next(self) -> Trial | None:
        """The next trial to start, or None to be asked again later. Raises StopIteration when there are no more."""
        for one in self.ledger.trials.values():
            if one.status == "waiting" and one.id not in self.running.values():
                return one
        self.check_budget()
        if self.over or self._enough():
            raise StopIteration
        proposal = self.searcher.next()
        if proposal is None:
            return None
        name = f"t{len(self.ledger.trials):04d}"
        self.ledger.record("proposed", trial=name, index=proposal.index, values=proposal.values, keys=proposal.keys)
        return self.ledger.trials[name]

    def check_budget(self) -> None:
        """End the search when its epochs or minutes are used up: running trials stop at their next report."""
        budget = self.plan.search.budget
        if self.over:
            return
        if budget.epochs and self.ledger.epochs >= budget.epochs:
            self.over = f"budget of {budget.epochs} epochs"
        elif budget.minutes and self.ledger.seconds >= 60 * budget.minutes:
            self.over = f"budget of {budget.minutes:g} minutes"
        if self.over:
            for name in self.running.values():
                self.stop(name, self.over)

    def stop(self, name: str, reason: str) -> None:
        """Ask a trial to end at its next report."""
        one = self.ledger.trials[name]
        if not one.reason:
            self.ledger.record("cut", trial=name, reason=reason)
        (self.folder(one) / "stop").write_text(one.reason + "\n")

    def started(self, tune_trial: str) -> None:
        """The process of a trial runs."""
        if name := self.running.get(tune_trial):
            self.ledger.record("started", trial=name)
            if self.over:
                self.stop(name, self.over)
            self.table.show()

    def died(self, tune_trial: str) -> None:
        """The process of a trial died, and another one goes on with it."""
        if name := self.running.get(tune_trial):
            self.table.say(f"{name}: its process died (killed from outside, or out of memory); starting it again")

    def reported(self, tune_trial: str, result: dict[str, Any]) -> None:
        """A trial says how far it is, or how it ended."""
        if "end" in result:
            self.ended(tune_trial, **json.loads(result["end"]))
            return
        name = result["trial"]
        kept = {key: result[key] for key in ("stage", "step", "epochs", "seconds")}
        self.ledger.record("result", trial=name, metric=result.get("value"), **kept)
        if reason := self.ledger.trials[name].reason:
            self.stop(name, reason)
        self.check_budget()
        self.table.show()

    def ended(self, tune_trial: str, status: str, **end: Any) -> None:
        """A trial ended, by itself or with its process."""
        name = self.running.pop(tune_trial, None)
        if name is None:
            return
        one = self.ledger.trials[name]
        assert one.status in OPEN
        if status == "stopped" and not one.reason.startswith("rung"):
            status = "cut"
        self.ledger.record("ended", trial=name, status=status, **end)
        Folder(str(self.folder(one) / "checkpoints")).remove()
        report.trial_board(self.plan, one)
        report.write_table(self.plan, self.ledger)
        self.table.ended(one)
