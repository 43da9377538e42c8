"""What a run will do, stage by stage, before anything is trained: what each stage is for, how long it trains, and how
many interactions go through its steps, which is what its time grows with.

A stage that stops early, or that validation data let skip a part, takes less; nothing takes more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from m3dist.config import Config, Fit
from m3dist.data.dataset import Dataset
from m3dist.method import race, registry, warm
from m3dist.method.registry import StageSpec
from m3dist.plan import TEST, keys, planned
from m3dist.run_folder import artifact_store


@dataclass(frozen=True)
class Explained:
    """One step of a run.

    about: what it is for. work: how much it trains, in words. visits: interactions that go through its steps, each as
    often as a step of one recommender sees it; 0 where there are no such steps. done: whether its result is there.
    """

    name: str
    about: str
    work: str
    visits: int
    done: bool


def explained(config: Config, dataset: Dataset) -> list[Explained]:
    """Every step of a run, in order. Raises ValueError where `warm_from` is no finished run."""
    spec, store, key = registry.model(config.model), artifact_store(config), keys(config, dataset)
    rows = []
    for name in planned(config, test=True):
        done = store.has(name, key[name])
        if name == TEST:
            users = len(np.unique(dataset.interactions(TEST)[0]))
            rows.append(
                Explained(name, "ranks all items for the users of the test split", _ranked(users, dataset), 0, done)
            )
            continue
        stage = spec.stage(name)
        if config.warm_from is not None and stage.takes_over:
            rows.append(Explained(name, f"takes over what {config.warm_from} found", "", 0, done))
            continue
        work, visits = _WORK.get(stage.section, _epochs)(stage, config, dataset)
        rows.append(Explained(name, stage.about, work, visits, done))
    return rows


def _ranked(users: int, dataset: Dataset) -> str:
    return f"{users:,} users x {dataset.n_items:,} items"


def _fitted(settings: Fit, interactions: int, times: int = 1) -> tuple[str, int]:
    """Of so many fits: their length in words, and the visits."""
    epochs, steps = settings.length(interactions), math.ceil(interactions / settings.batch_size)
    size = min(settings.batch_size, interactions)
    return f"{epochs:,} epochs of {steps:,} steps of {size:,} interactions", times * epochs * interactions


def _members(config: Config, dataset: Dataset) -> int:
    """Recommenders that stage 3 trains side by side."""
    return len(dataset.modalities) if registry.model(config.model).members == "modalities" else 1


def _graph(stage: StageSpec, config: Config, dataset: Dataset) -> tuple[str, int]:
    counted = np.minimum(dataset.degrees[0].astype(np.int64), config.graph.per_user)
    return f"{int((counted**2).sum()):,} pairs of items", 0


def _race(stage: StageSpec, config: Config, dataset: Dataset) -> tuple[str, int]:
    n, short = dataset.size("train"), race.shortened(config, dataset.size("train"))
    if stage.name == "selection":
        fits, members = 2, _members(config, dataset)
        work, visits = _fitted(short, n, fits * members)
        return f"{fits} fits, each {work}" + _each(members), visits
    features = bool(dataset.modalities)
    fits = len(race.candidates(config.backbone, features)) + (features and config.backbone.id_dropout is None)
    work, visits = _fitted(short, n, fits)
    longer = race.shortened(config, n, race.LONGER)
    work = f"at most {fits} fits, each {work}"
    if longer.epochs != short.epochs:
        more = 1 + sum(one.loss == "ultragcn" for one in race.candidates(config.backbone, features))
        work += f"; where losses are close {more} more of {longer.epochs:,} epochs"
        visits += _fitted(longer, n, more)[1]
    return work, visits


def _invariance(stage: StageSpec, config: Config, dataset: Dataset) -> tuple[str, int]:
    settings, modalities = config.invariance, len(dataset.modalities)
    content = modalities + 1 if registry.model(config.model).members == "modalities" else 1
    steps, size = settings.environment_steps + settings.mask_steps, min(settings.batch_size, dataset.size("train"))
    work = f"{settings.rounds:,} rounds of {steps:,} steps of {size:,} interactions"
    each = f", for each of {content} representations" if content > 1 else ""
    return work + each, settings.rounds * steps * size * content


def _merge(stage: StageSpec, config: Config, dataset: Dataset) -> tuple[str, int]:
    n, members = dataset.size("train"), 1 if stage.name == "pretrain" else _members(config, dataset)
    if config.warm_from is not None:
        config = warm.shortened(config, n)
    work, visits = _fitted(config.merge, n, members)
    return work + _each(members), visits


def _each(members: int) -> str:
    return f", of {members} recommenders at once" if members > 1 else ""


def _epochs(stage: StageSpec, config: Config, dataset: Dataset) -> tuple[str, int]:
    return _fitted(getattr(config, stage.section), dataset.size("train"))


_WORK: dict[str, Callable[[StageSpec, Config, Dataset], tuple[str, int]]] = {  # by the section of the config
    "graph": _graph,
    "race": _race,
    "invariance": _invariance,
    "merge": _merge,
}
