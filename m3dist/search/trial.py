"""What runs in a trial's process: one training run that reports every epoch and ends itself when told to.

The search answers a report by leaving a file `stop` in the trial's folder before the report returns. A trial that
reads it leaves its stages in order, workers and leases included; killing it would leave both to be found dead.
Nothing here reads test data.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from m3dist.config import Config
from m3dist.search import stages
from m3dist.section import Section
from m3dist.storage.leases import Leases
from m3dist.training.callbacks import Callback, Stopped

Report = Callable[[dict[str, Any]], None]


class Progress(Section):
    """How far a trial had come when its process ended."""

    epochs: int = 0
    seconds: float = 0.0
    stage: str = ""
    metric: float | None = None  # best in that stage


class Job(Section):
    """What a trial's process is told."""

    trial: str
    config: Config
    metric: str
    mode: Literal["max", "min"]
    share: bool  # stages are trained once for all trials
    threads: int = 1
    before: Progress = Progress()


class Watch(Callback):
    """A callback of a training run: counts epochs, keeps the best value, reports, and asks whether to go on.

    waited: seconds spent waiting for stages that other trials train. best: the best value of the metric in `stage`,
    the one under way.
    """

    def __init__(self, job: Job, report: Report):
        self.job, self.report = job, report
        self.epochs, self.stage, self.best = job.before.epochs, job.before.stage, job.before.metric
        self.started, self.waited = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Of this trial so far, in all its processes, without those that it waited."""
        return self.job.before.seconds + time.monotonic() - self.started - self.waited

    def check(self) -> None:
        """Raises Stopped when the search asked the trial to end."""
        if Path(self.job.config.out, "stop").exists():
            raise Stopped(self.job.trial)

    def on_epoch(self, stage: str, step: int, values: dict[str, float]) -> None:
        if stage not in stages.planned(self.job.config):  # a candidate of a race: the search counts no epochs of these
            self.check()
            return
        if stage != self.stage:
            self.stage, self.best = stage, None
        self.epochs += 1
        if (value := values.get(self.job.metric)) is not None:
            pick = max if self.job.mode == "max" else min
            self.best = value if self.best is None else pick(self.best, value)
        self.report(
            {
                "trial": self.job.trial, "stage": stage, "step": step, "epochs": self.epochs, "seconds": self.seconds,
                "value": self.best,
            }
        )  # fmt: skip
        self.check()


class SharedStages:
    """The stages of a trial in a store that several trials share, with a lease on each.

    reused: the stages that were found done.
    """

    def __init__(self, job: Job, watch: Watch):
        self.store, self.watch = stages.store(job.config), watch
        self.counted = stages.planned(job.config)
        keys = stages.artifacts(job.config, stages.open_data(job.config))
        missing = [f"{stage}-{key}" for stage, key in keys.items() if not self.store.has(stage, key)]
        self._leases = Leases(Path(self.store.root.path) / "leases", missing)
        self.reused: list[str] = []

    @contextlib.contextmanager
    def lease(self, stage: str, key: str) -> Iterator[None]:
        """Held while the stage is looked up and trained; waits while another trial trains it."""
        began = time.monotonic()
        with self._leases.hold(f"{stage}-{key}", lambda: self.store.has(stage, key), self.watch.check) as mine:
            self.watch.waited += time.monotonic() - began
            if not mine and stage in self.counted:
                self.reused.append(stage)
            yield


def run(job: Job, report: Report) -> dict[str, Any]:
    """Run one trial and say how it ended: status, reason, stage, metric, reused, epochs and seconds, where known.

    Never raises for what a config can cause.
    """
    out = Path(job.config.out)
    out.mkdir(parents=True, exist_ok=True)
    watch = Watch(job, report)
    shared = SharedStages(job, watch) if job.share else None
    end: dict[str, Any] = {"status": "finished"}
    try:
        # the trial's process of an earlier run of the search may still be about
        with Leases(out / "leases").hold("trial", waiting=watch.check):
            watch.check()
            result = stages.train(job.config, watch, shared.lease if shared is not None else None)
        watch.best = result["validation"][job.metric]
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


def trainable(values: dict[str, Any]) -> None:
    """The function that Ray Tune runs; values: those of a Job."""
    import torch
    from ray import tune

    job = Job.model_validate(values)
    torch.set_num_threads(job.threads)  # processes that share cores must not compete with threads as well
    end = run(job, tune.report)
    tune.report({"trial": job.trial, "end": json.dumps(end)})
