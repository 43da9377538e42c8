"""All that a search asks of training: a config's stages, their keys, lengths and memory, and a run of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from m3dist import pipeline
from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.method import registry
from m3dist.storage.artifacts import Store
from m3dist.training import memory as formula
from m3dist.training.callbacks import Callback

Lease = Callable[[str, str], AbstractContextManager[Any]]  # (stage, key), held while the stage is trained


def planned(config: Config) -> list[str]:
    """The stages that a trial of a config trains, in order: those that have a length."""
    spec = registry.model(config.model)
    return [name for name in pipeline.planned(config, test=False) if spec.stage(name).lengths]


def ranks(config: Config) -> bool:
    """Whether the last stage of a config is the one that is measured and tested."""
    return pipeline.final_stage(config) in planned(config)


def keys(config: Config, dataset: Dataset) -> dict[str, str]:
    """The artifact key of every stage; two configs share a stage where its keys are equal."""
    known = pipeline.keys(config, dataset)
    return {stage: known[stage] for stage in planned(config)}


def artifacts(config: Config, dataset: Dataset) -> dict[str, str]:
    """The key of all that a trial leaves for others: its stages, and what is made before them."""
    known = pipeline.keys(config, dataset)
    return {name: known[name] for name in pipeline.planned(config, test=False)}


def open_data(config: Config) -> Dataset:
    """The data set of a config, made in its `out` where it is synthetic."""
    return pipeline.open_data(config)


def store(config: Config) -> Store:
    """Where the artifacts of a config's stages are kept."""
    return pipeline.artifact_store(config)


def memory(config: Config, dataset: Dataset) -> int:
    """Bytes that a worker of a config needs, by formula."""
    return formula.predict(config, dataset)["total"]


def measured(config: Config, stage: str) -> bool:
    """Whether a stage is evaluated on validation data while it trains; environments and masks rank nothing."""
    return registry.model(config.model).stage(stage).validates


def length(config: Config, stage: str, dataset: Dataset) -> int:
    """The most epochs, or rounds, that a stage logs."""
    section = registry.model(config.model).stage(stage).section
    return getattr(config, section).length(dataset.size("train"))


def train(config: Config, callback: Callback, lease: Lease | None) -> dict[str, Any]:
    """Train the stages of a config that are not in its store, without test data; the content of result.json.

    callback: may raise callbacks.Stopped. lease: entered before a stage is looked up, left after the last one.
    """
    return pipeline.run(config, [callback], quiet=True, test=False, lease=lease)


def test(config: Config) -> dict[str, Any]:
    """Train a config and read the test split once; the content of result.json."""
    return pipeline.run(config, quiet=True)
