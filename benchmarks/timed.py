"""`python -m benchmarks.timed LEDGER WORKERS ARGUMENTS...`: `m3dist ARGUMENTS workers=WORKERS` and where its time went.

Clocks are put around the library's own functions in the process that trains, or on rank 0; each second is
booked once, in the innermost clock. LEDGER, JSON: when the run, or workers, were asked for. LEDGER.STEP, one for each
start-up: when it was there, when it left, and seconds by name.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LEDGER = "M3DIST_BENCH_LEDGER"  # the file, for workers


class Clocks:
    """Seconds by name; a clock inside another stops the outer one meanwhile."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    def _book(self) -> None:
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Put a clock around a function of a module or class."""
        inner: Callable = getattr(owner, attribute)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._book()
            self._open.append(name)
            try:
                return inner(*args, **kwargs)
            finally:
                self._book()
                self._open.pop()

        setattr(owner, attribute, timed)


def wind(clocks: Clocks) -> None:
    """Put clocks around what trains, evaluates, reads and writes."""
    from m3dist.data.dataset import Dataset
    from m3dist.evaluation.evaluator import Evaluator
    from m3dist.method.trainer import Trainer
    from m3dist.storage.artifacts import Store
    from m3dist.storage.checkpoints import Checkpoints
    from m3dist.training import loop
    from m3dist.training.tracking import Tracker

    clocks.around(loop, "_epoch", "steps")
    for name in ("environments", "masks", "assign"):
        clocks.around(Trainer, name, "steps")
    clocks.around(Evaluator, "evaluate", "evaluation")
    for owner, names in {
        Store: ("save", "load", "meta"), Checkpoints: ("save", "latest", "clear"),
        Dataset: ("interactions", "features"),
        Tracker: ("log", "histogram", "begin", "progress"), loop.Fitting: ("save",),
    }.items():  # fmt: skip
        for name in names:
            clocks.around(owner, name, "reading and writing")


def work(job: Any, engine: Any, *args: Any) -> None:
    """pipeline.work under clocks, in whichever process it runs; those of rank 0 are written."""
    from m3dist import pipeline

    entered, clocks = time.time(), Clocks()
    wind(clocks)
    clocks.around(sys.modules[__name__], "_work", "other")
    _work(getattr(pipeline, "untimed", pipeline.work), job, engine, *args)
    if engine.rank_zero:
        found = {"entered": entered, "left": time.time(), "clocks": clocks.seconds}
        Path(f"{os.environ[_LEDGER]}.{job.steps[0]}").write_text(json.dumps(found))


def _work(real: Callable, *args: Any) -> None:
    real(*args)


def main() -> None:
    path, workers, *arguments = sys.argv[1:]
    os.environ[_LEDGER] = str(Path(path).resolve())
    from benchmarks import timed  # by its name, which workers can import
    from m3dist import pipeline
    from m3dist.cli.main import main as cli

    asked: list[float] = []

    def noted(owner: Any, attribute: str) -> None:
        real = getattr(owner, attribute)

        def call(*args: Any, **kwargs: Any) -> Any:
            asked.append(time.time())
            return real(*args, **kwargs)

        setattr(owner, attribute, call)

    pipeline.untimed, pipeline.work = pipeline.work, timed.work  # type: ignore[attr-defined]
    if workers == "0":
        noted(pipeline, "run")
    else:
        from m3dist.distributed import ray_train as launch

        noted(launch, "run")
    try:
        cli([*arguments, f"workers={workers}"])
    finally:
        Path(path).write_text(json.dumps({"asked": asked}))


if __name__ == "__main__":
    main()
