"""What runs in a trial's process: one pipeline run that reports every epoch and ends itself when told to.

The search answers a report by leaving a file `stop` in the trial's folder before the report returns. A trial that
reads it leaves its stages in order, workers and claims included; killing it would leave both to be found dead.
Nothing here reads test data.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from m3dist import pipeline
from m3dist.config import Config
from m3dist.search.claims import Claims
from m3dist.search.rungs import epochs_per_step
from m3dist.storage.artifacts import Store
from m3dist.training.callbacks import Callback, Stopped

Report = Callable[[dict[str, Any]], None]


class Watch(Callback):
    """Listens to a run: counts epochs, keeps the best value, reports, and asks whether to go on.

    before: epochs, seconds, and the stage with its best value of former sittings.
    """

    def __init__(self, config: Config, trial: str, metric: str, mode: str, report: Report, before: dict[str, Any]):
        self.config, self.trial, self.metric, self.mode, self.report = config, trial, metric, mode, report
        self.epochs, self._earlier = before["epochs"], before["seconds"]
        self.stage, self.best = before["stage"], before["metric"]
        self.started = self.entered = time.monotonic()
        self.waited = 0.0
        self.cost: dict[str, dict[str, float]] = {}  # of every stage trained here
        self.stage_done: Callable[[str], None] = lambda stage: None  # called when the next one begins

    @property
    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self.started

    def wanted(self) -> None:
        """Raises Stopped when the search wants the trial to end."""
        if Path(self.config.out, "stop").exists():
            raise Stopped(self.trial)

    def on_epoch(self, stage: str, step: int, values: dict[str, float]) -> None:
        if stage not in pipeline.planned(self.config, test=False):
            return
        if stage != self.stage:
            self.stage_done(self.stage)
            self.stage, self.best = stage, None
        n, now = epochs_per_step(self.config, stage), time.monotonic()
        self.epochs += n
        cost = self.cost.setdefault(stage, {"epochs": 0, "seconds": 0.0})
        cost["epochs"] += n
        cost["seconds"] += now - self.entered
        self.entered = now
        if (value := values.get(self.metric)) is not None:
            better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
            self.best = value if better else self.best
        self.report(
            {
                "trial": self.trial, "stage": stage, "step": step, "epochs": self.epochs, "seconds": self.seconds,
                "value": self.best,
            }
        )  # fmt: skip
        self.wanted()


class Shared:
    """Stages in a store that several trials share: a claim on every stage, and an account of what it took."""

    def __init__(self, store: Path, owner: str, watch: Watch):
        self.store, self.watch = Store(store), watch
        self.claims = Claims(store / "claims", owner)
        self.reused: list[str] = []
        self._held: dict[str, str] = {}
        watch.stage_done = self._account_for

    @contextlib.contextmanager
    def __call__(self, stage: str, key: str) -> Iterator[None]:
        """Held while the stage is looked up and trained; waits while somebody else trains it."""
        name, began = f"{stage}-{key}", time.monotonic()
        with self.claims.hold(name, lambda: self.store.has(stage, key), self.watch.wanted) as mine:
            self.watch.waited += time.monotonic() - began
            self.watch.entered = time.monotonic()
            if not mine:
                self.reused.append(stage)
            else:
                self._held[stage] = name
            yield
            if mine and self.store.has(stage, key):
                self._account_for(stage)

    def _account_for(self, stage: str) -> None:
        """Write down what a finished stage cost here, for those who reuse it."""
        if stage in self._held and stage in self.watch.cost:
            _account(self.claims.root, self._held[stage]).write_text(json.dumps(self.watch.cost[stage]))


def _account(claims: Path, name: str) -> Path:
    return claims / f"{name}.cost"


def cost(store: Path, stage: str, key: str) -> dict[str, float]:
    """Epochs and seconds that a finished stage of a shared store took; zeros where nobody kept an account."""
    try:
        return json.loads(_account(store / "claims", f"{stage}-{key}").read_text())
    except (OSError, ValueError):
        return {"epochs": 0, "seconds": 0.0}


def run(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """Run one trial and say how it ended; never raises for what a config can cause.

    job: trial, config (plain values), metric, mode, share (trains stages once), before (see Watch).
    """
    config = Config.model_validate(job["config"])
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    watch = Watch(config, job["trial"], job["metric"], job["mode"], report, job["before"])
    shared = Shared(Path(pipeline.artifact_store(config).root.path), job["trial"], watch) if job["share"] else None
    end: dict[str, Any] = {"status": "finished"}
    own = Claims(out / "claims", job["trial"])
    try:
        with own.hold("trial", waiting=watch.wanted):  # the process of a former sitting may still be about
            watch.wanted()
            result = pipeline.run(config, [watch], quiet=True, test=False, lease=shared)
        watch.best = result["validation"][job["metric"]]
        end |= {"metric": watch.best, "stage": list(result["stages"])[-1]}
    except Stopped:
        end["status"] = "stopped"
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        end |= {"status": "failed", "reason": f"{type(error).__name__}: {said[0]}"}
        (out / "error.txt").write_text(traceback.format_exc())
    if shared is not None:
        end |= {"reused": shared.reused}
    return {**end, "epochs": watch.epochs, "seconds": watch.seconds}


def trainable(job: dict[str, Any]) -> None:
    """The function that Ray Tune runs."""
    import torch
    from ray import tune

    torch.set_num_threads(job["threads"])  # processes that share cores must not compete with threads as well
    end = run(job, tune.report)
    tune.report({"trial": job["trial"], "end": json.dumps(end)})
