"""Run the stages of a model in order; a stage whose artifact is already there is skipped.

A stage's key hashes what its output depends on: the data, the seed, the config values that its spec names and the
stages before; never how many workers compute it. Test data is read once, after all was chosen on validation data.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

import m3dist
from m3dist import config as configs
from m3dist import results
from m3dist.config import Config, digest, to_own
from m3dist.data.dataset import SPLITS, Dataset
from m3dist.distributed import devices
from m3dist.distributed.engine import Engine
from m3dist.distributed.metrics import Here
from m3dist.evaluation.ranking import Scorer
from m3dist.method import registry
from m3dist.storage.artifacts import Output, Store
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder
from m3dist.storage.owner import Owner, alone
from m3dist.training.allocator import keep_freed_memory
from m3dist.training.callbacks import Callback, Callbacks, Stopped
from m3dist.training.context import Context
from m3dist.training.loggers import LOGGERS
from m3dist.training.tracking import Display, Interrupts, Tracker

TEST = "test"  # the last step of a run, which reads the test split
Held = dict[str, tuple[np.ndarray, np.ndarray]]
Lease = Callable[[str, str], contextlib.AbstractContextManager[Any]]


def open_data(config: Config, held: Held | None = None) -> Dataset:
    """The run's data set, local or by URI; `synthetic` is made on first use, in the run folder.

    held: interactions by split that are in memory already.
    """
    if config.data != "synthetic":
        return Dataset(Folder(config.data).here() if "://" in config.data else config.data, held)
    from m3dist.data import synthetic

    folder = Folder(config.out) / f"data-{digest([config.synthetic.model_dump(), config.seed])}"
    if not folder.exists("dataset.json"):
        with tempfile.TemporaryDirectory() as temporary:
            made = Path(folder.path) if folder.is_local else Path(temporary) / "data"
            synthetic.write(made, config.synthetic, config.seed)
            if not folder.is_local:
                folder.upload(made)
    return Dataset(folder.here(), held)


def artifact_store(config: Config) -> Store:
    """Where a run's finished stages are."""
    return Store(Folder(config.artifacts) if config.artifacts else Folder(config.out) / "artifacts")


def keys(config: Config, dataset: Dataset) -> dict[str, str]:
    """The artifact key of every step of a run, in order."""
    out: dict[str, str] = {}
    spec = registry.model(config.model)
    for stage in spec.planned(config):
        reads = [configs.value(config, name) for name in (stage.section, *stage.reads)]
        inputs = [out[name] for name in stage.inputs if name in out]
        out[stage.name] = digest([dataset.fingerprint, config.seed, stage.run, reads, inputs])
    return out | {TEST: digest([out[spec.final.name], config.evaluation.k])}


def planned(config: Config, test: bool) -> list[str]:
    """The steps that a run of `config` takes, in order."""
    stages = [*config.stage_names]
    return [*stages, TEST] if test and final_stage(config) in stages else stages


def final_stage(config: Config) -> str:
    """The stage whose artifact ranks."""
    return registry.model(config.model).final.name


def scorer(config: Config, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> Scorer:
    """The final stage's tensors, ready to rank on a device."""
    return registry.load(registry.model(config.model).scorer)({k: x.to(device) for k, x in tensors.items()}, config)


def resumed(run: str, overrides: tuple[str, ...]) -> Config:
    """The config of a run folder with overrides that change no result, to go on with it.

    Raises ValueError when there is no such run or an override would make it another one.
    """
    folder = Folder(run)
    if not folder.exists("config.yaml"):
        raise ValueError(f"{run}: no run to resume (no config.yaml); start one with `m3dist train out={run}`")
    with folder.local("config.yaml") as path:
        source = f"{run}/config.yaml"
        before, config = (configs.load_own(path, source, [*given, f"out={run}"]) for given in ((), overrides))
    if config.data != before.data:
        raise ValueError(f"{run}: belongs to data={before.data}; drop data={config.data} or train in another out")
    dataset = open_data(config)
    was, now = keys(before, dataset), keys(config, dataset)
    if changed := [name for name in now if was.get(name) != now[name]]:
        raise ValueError(
            f"{run}: belongs to another config: {' '.join(overrides)} would change its stage {changed[0]}; drop that "
            f"or train with another out"
        )
    return config


def _check(config: Config) -> None:
    """Raises ValueError before anything is written: the run folder holds a run on other data, whose results would be
    mixed with these, or the data set is none or not enough.
    """
    out = Folder(config.out)
    artifact_store(config)
    if out.exists("config.yaml"):
        with out.local("config.yaml") as path:
            data = configs.read_own(path, f"{config.out}/config.yaml").get("data")
        if data != config.data:
            raise ValueError(f"out={config.out}: holds a run on data={data}; choose another out")
    if config.data == "synthetic":  # made in the run folder, with features
        return
    if registry.model(config.model).needs_features and not open_data(config).modalities:
        raise ValueError(f"data={config.data}: has no item features, which {config.model} needs; use model=ultragcn")


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
    for name in job.steps:
        if engine.largest(int(engine.rank_zero and store.has(name, key[name]))):
            continue
        saved = Checkpoints(_checkpoints(config, name, key), key[name], config.checkpoint, engine)
        if name == TEST:
            output = _test(context, scorer(config, context.read(spec.final.name), engine.device))
        else:
            stage = spec.stage(name)
            output = registry.load(stage.run)(context.at(stage, saved))
        store.save(name, key[name], output, engine)
        saved.clear()
        if engine.largest(int(engine.rank_zero and tracker.stopped)):  # by the last step of the stage
            raise Stopped(f"stopped after {name}")


def _checkpoints(config: Config, name: str, key: dict[str, str]) -> Folder:
    return Folder(config.out) / "checkpoints" / f"{name}-{key[name]}"


def _groups(config: Config, steps: list[str]) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """(on workers, steps that run together): a start-up each, so as few as can be.

    Environment models that train as actors are led by the driver, which holds no workers meanwhile.
    """
    led = [stage.name for stage in registry.model(config.model).stages if stage.actors and config.actors]
    here = [not config.workers or name in led for name in steps]
    start = 0
    for at in range(1, len(steps) + 1):
        if at == len(steps) or here[at] != here[start]:
            yield not here[start], tuple(steps[start:at])
            start = at


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
    _check(config)
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
    out.write_text("config.yaml", to_own(config))
    versions = {"m3dist": m3dist.__version__, "python": platform.python_version(), "torch": torch.__version__}
    out.write_json("versions.json", {**versions, "numpy": np.__version__, "pyarrow": pa.__version__})
    lost = terms.owner.lost.is_set
    with contextlib.ExitStack() as leases:
        for name in steps if lease else []:
            leases.enter_context(lease(name, key[name]))  # type: ignore[misc]
        done = [name for name in steps if store.has(name, key[name])]
        for name in done:  # of a run that was killed before it could clear them
            _checkpoints(config, name, key).remove()
        for on_workers, names in _groups(config, [name for name in steps if name not in done]):
            todo = functools.partial(work, Job(config, names))
            if on_workers:
                from m3dist.distributed import ray_train

                held = {split: dataset.interactions(split) for split in SPLITS}
                with Tracker(None, display=Display(terms.quiet), stop=lost) as tracker:
                    task = ray_train.Task(todo, f"m3dist-{dataset.name}-{'-'.join(names)}", held)
                    ray_train.run(task, config, tracker, told or None)
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
