"""Run the stages of a model in order; a stage whose artifact is already there is skipped.

Test data is read once, after all was chosen on validation data. What a run consists of is in `m3dist.plan`, what its
folder holds in `m3dist.run_folder`; their names are offered here, too.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import m3dist
from m3dist import results
from m3dist.config import Config, to_own
from m3dist.distributed import devices
from m3dist.distributed.engine import Engine
from m3dist.distributed.metrics import Here
from m3dist.evaluation.ranking import Scorer
from m3dist.method import registry, warm
from m3dist.plan import TEST, final_stage, groups, keys, pinned, planned, scorer
from m3dist.run_folder import Held, artifact_store, check, checkpoints, earlier, open_data, resumed
from m3dist.storage.artifacts import Output
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder
from m3dist.storage.owner import Owner, alone
from m3dist.training.allocator import keep_freed_memory
from m3dist.training.callbacks import Callback, Callbacks, Stopped
from m3dist.training.context import Context
from m3dist.training.loggers import LOGGERS
from m3dist.training.tracking import Display, Interrupts, Tracker

__all__ = [
    "TEST", "Held", "Job", "Lease", "artifact_store", "final_stage", "keys", "open_data",
    "planned", "resumed", "run", "scorer", "work",
]  # fmt: skip
Lease = Callable[[str, str], contextlib.AbstractContextManager[Any]]


def _test(context: Context, score: Scorer) -> Output:
    """Metrics on the test split, and every user's."""
    metrics, table = context.evaluator.evaluate(score, TEST, keep=True)
    context.tracker.log(TEST, 0, metrics)
    tables = context.engine.collect(table)
    order = np.argsort(np.concatenate([part["user"] for part in tables]), kind="stable")
    users = {name: np.concatenate([part[name] for part in tables])[order] for name in table}
    return Output({name: torch.from_numpy(values) for name, values in users.items()}, {"metrics": metrics})


@dataclass(frozen=True)
class Job:
    """Steps of a run for the workers, with the recommenders that only this process knows."""

    config: Config
    steps: tuple[str, ...]
    classes: dict[str, type] = field(default_factory=registry.registered)


def work(job: Job, engine: Engine, tracker: Tracker, held: Held | None = None) -> None:
    """Compute the artifacts of a job's steps that are not there yet; every worker calls it alike."""
    config = job.config
    registry.register(job.classes)
    if engine.device.type == "cpu":
        keep_freed_memory()
    if engine.rank_zero:
        tracker.say(
            f"on {devices.described(engine.device)}" + (f", {engine.world} workers" if engine.world > 1 else "")
        )
    dataset, store, spec = open_data(config, held), artifact_store(config), registry.model(config.model)
    key = keys(config, dataset)
    context = Context(dataset, config, engine, tracker, lambda stage: store.load(stage, key[stage]))
    if config.warm_from and any(not store.has(name, key[name]) for name in job.steps if name != TEST):
        context.before = earlier(config, engine)
    for name in job.steps:
        if engine.largest(int(engine.rank_zero and store.has(name, key[name]))):
            continue
        saved = Checkpoints(checkpoints(config, name, key), key[name], config.checkpoint, engine)
        if name == TEST:
            output = _test(context, scorer(config, context.read(spec.final.name), engine.device))
        else:
            stage = spec.stage(name)
            output = registry.load(stage.function(config))(context.at(stage, saved))
        store.save(name, key[name], output, engine)
        saved.clear()
        if engine.largest(int(engine.rank_zero and tracker.stopped)):  # by the last step of the stage
            raise Stopped(f"stopped after {name}")


def run(
    config: Config,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    test: bool = True,
    lease: Lease | None = None,
) -> dict[str, Any]:
    """Train what `config` says and return the content of result.json.

    test: whether to read the test split at the end; a search does not. lease(stage, key): a context entered before a
    stage is looked up and left when all are done; waits while another run trains the same stage. Raises Stopped when a
    callback did, KeyboardInterrupt when interrupted, after a checkpoint, and ValueError when another process works in
    the run folder.
    """
    check(config)
    config = pinned(config)
    told = Callbacks([*callbacks, *(LOGGERS[name]() for name in config.report_to)])
    with alone(Folder(config.out)) as owner:
        return _run(config, told, Terms(owner, quiet, test, lease))


@dataclass(frozen=True)
class Terms:
    """How a run is carried out: who owns its folder, and what `run` is told."""

    owner: Owner
    quiet: bool
    test: bool
    lease: Lease | None


def _run(config: Config, told: Callbacks, terms: Terms) -> dict[str, Any]:
    """The run itself, in a folder that is this process's alone."""
    started, out, lease = time.time(), Folder(config.out), terms.lease
    dataset = open_data(config)
    store, key = artifact_store(config), keys(config, dataset)
    steps = planned(config, terms.test)
    if config.warm_from and not all(store.has(name, key[name]) for name in steps if name != TEST):
        warm.refuse(config, dataset, earlier(config, Engine()))  # type: ignore[arg-type]
    out.write_text("config.yaml", to_own(config))
    versions = {"m3dist": m3dist.__version__, "python": platform.python_version(), "torch": torch.__version__}
    out.write_json("versions.json", {**versions, "numpy": np.__version__, "pyarrow": pa.__version__})
    lost = terms.owner.lost.is_set
    with contextlib.ExitStack() as leases:
        for name in steps if lease else []:
            leases.enter_context(lease(name, key[name]))  # type: ignore[misc]
        done = [name for name in steps if store.has(name, key[name])]
        for name in done:  # of a run that was killed before it could clear them
            checkpoints(config, name, key).remove()
        for on_workers, names in groups(config, [name for name in steps if name not in done]):
            own = config.placed() if on_workers else config
            todo = functools.partial(work, Job(own, names))
            if on_workers:
                from m3dist.distributed import ray_train

                with Tracker(None, display=Display(terms.quiet), stop=lost) as tracker:
                    task = ray_train.Task(todo, f"m3dist-{dataset.name}-{'-'.join(names)}")
                    ray_train.run(task, own, tracker, told or None)
            else:
                heard = Callbacks([Here(config.out), *told.callbacks])
                with Interrupts(lost) as stop, Tracker(out, heard, Display(terms.quiet), stop) as tracker:
                    # with workers elsewhere this process only leads actors, which find their own devices
                    todo(Engine.of(config, device="cpu" if config.workers else None), tracker, dataset.held)

    result = results.collect(config, dataset, store, key, steps)
    result |= {"seconds": time.time() - started, "skipped": done}
    out.write_json("result.json", result)
    told.end(result)
    return result
