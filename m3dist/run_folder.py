"""A run's folder: its data set, finished stages and checkpoints, and the config that it began with."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from m3dist import config as configs
from m3dist.config import Config, digest
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Engine
from m3dist.method import registry
from m3dist.plan import final_stage, keys, pinned
from m3dist.storage.artifacts import Store
from m3dist.storage.folders import Folder
from m3dist.storage.owner import refuse_data
from m3dist.training.context import Context

Held = dict[str, tuple[np.ndarray, np.ndarray]]


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


def _near(run: Folder, config: Config) -> Config:
    """The config of a run's folder with its data and artifacts where they are `_seen`."""
    return config.model_copy(update={name: _seen(run, getattr(config, name)) for name in ("data", "artifacts")})


def _seen(run: Folder, path: str | None) -> str | None:
    """A path of a run's config. A relative one at which nothing is here leads from the nearest folder above the run's
    where something is, as the run may have been trained from there."""
    if path is None or path == "synthetic" or "://" in path or not run.is_local or Path(path).exists():
        return path
    above = (folder / path for folder in Path(run.path).parents)
    return next((str(there) for there in above if there.exists()), path)


@dataclass(frozen=True)
class Finished:
    """A finished run. config: its own, whose `out` is the folder that it was found in; result: of result.json; key: of
    every step."""

    root: Folder
    config: Config
    result: dict[str, Any]
    dataset: Dataset
    key: dict[str, str]
    store: Store

    @classmethod
    def of(cls, root: str | Path) -> Finished:
        """Raises ValueError when it is no finished run, or its data set changed since."""
        folder = Folder(root)
        try:
            there = folder.exists("result.json")
        except OSError as error:
            raise ValueError(f"{root}: cannot be read ({error})") from None
        if not there:
            raise ValueError(f"{root}: not a finished run (no result.json); train it first with out={root}")
        with folder.local("config.yaml") as path:
            own = configs.load_own(path, f"{root}/config.yaml")
        config = _near(folder, own.model_copy(update={"out": folder.uri}))
        dataset, stage, store = open_data(config), final_stage(config), artifact_store(config)
        key = keys(config, dataset)
        if not store.has(stage, key[stage]):
            raise ValueError(f"{root}: no {stage} stage for this config and data; train it again with out={root}")
        return cls(folder, config, dict(folder.read_json("result.json")), dataset, key, store)

    def load(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a stage, and what it said beside them."""
        return self.store.load(stage, self.key[stage])

    def context(self, engine: Engine) -> Context:
        """The run at its last stage, on a device."""
        return Context(self.dataset, self.config, engine, load=self.load).at(registry.model(self.config.model).final)


def earlier(config: Config, engine: Engine) -> Context | None:
    """The run that `warm_from` names, which must still be the one that this run began with; None without one.

    Raises ValueError where it is not.
    """
    if config.warm_from is None:
        return None
    root, _, key = pinned(config).warm_from.rpartition("@")  # type: ignore[union-attr]
    found = Finished.of(root)
    if found.key[final_stage(found.config)] != key:
        raise ValueError(f"warm_from={root}: has been trained anew since; choose another out to start from it")
    return found.context(engine)


def artifact_store(config: Config) -> Store:
    """Where a run's finished stages are."""
    return Store(Folder(config.artifacts) if config.artifacts else Folder(config.out) / "artifacts")


def checkpoints(config: Config, name: str, key: dict[str, str]) -> Folder:
    """Where a step saves what it has done so far. key: of every step, from `plan.keys`."""
    return Folder(config.out) / "checkpoints" / f"{name}-{key[name]}"


def resumed(run: str, overrides: tuple[str, ...]) -> Config:
    """The config of a run folder with overrides that change no result, to go on with it.

    Raises ValueError when there is no such run or an override would make it another one.
    """
    folder = Folder(run)
    if not folder.exists("config.yaml"):
        raise ValueError(f"{run}: no run to resume (no config.yaml); start one with `m3dist train out={run}`")
    with folder.local("config.yaml") as path:
        source = f"{run}/config.yaml"
        values = ([*given, f"out={run}"] for given in ((), overrides))
        before, config = (_near(folder, configs.load_own(path, source, each)) for each in values)
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


def check(config: Config) -> None:
    """Raises ValueError before anything is written: the run folder holds a run on other data, whose results would be
    mixed with these, or is a data set, or the data set to train on is none or not enough.
    """
    out = Folder(config.out)
    refuse_data(out)
    artifact_store(config)
    if out.exists("config.yaml"):
        with out.local("config.yaml") as path:
            data = configs.read_own(path, f"{config.out}/config.yaml").get("data")
        if config.data not in (data, _seen(out, data)):
            raise ValueError(f"out={config.out}: holds a run on data={data}; choose another out")
    if config.data == "synthetic":  # made in the run folder, with features
        return
    if registry.model(config.model).needs_features and not open_data(config).modalities:
        other = next(spec.name for spec in registry.MODELS.values() if not spec.needs_features)
        raise ValueError(f"data={config.data}: has no item features, which {config.model} needs; use model={other}")
