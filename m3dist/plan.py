"""What a run consists of: its steps in order, the artifact key of each, and which of them workers compute together.

A stage's key hashes what its output depends on: the data, the seed, the config values that its spec names and the
stages before; never how many workers compute it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from m3dist import config as configs
from m3dist.config import Config, digest
from m3dist.data.dataset import Dataset
from m3dist.evaluation.ranking import Scorer
from m3dist.method import registry
from m3dist.storage.folders import Folder

_PINNED = re.compile(r".+@[0-9a-f]{16}", re.S)
TEST = "test"  # the last step of a run, which reads the test split


def keys(config: Config, dataset: Dataset) -> dict[str, str]:
    """The artifact key of every step of a run, in order."""
    out: dict[str, str] = {}
    spec = registry.model(config.model)
    start = []
    if config.warm_from is not None:
        config = pinned(config)
        start = [config.warm_from.rpartition("@")[2], configs.value(config, "warm")]  # type: ignore[union-attr]
    for stage in spec.planned(config):
        reads = [configs.value(config, name) for name in (stage.section, *stage.reads)]
        inputs = [out[name] for name in stage.inputs if name in out]
        own = [config.seed, stage.function(config), reads, inputs, *start]
        made = own if stage.seeded else [None, stage.function(config), reads, inputs]
        out[stage.name] = digest([dataset.fingerprint, *made])
    return out | {TEST: digest([out[spec.final.name], config.evaluation.k])}


def pinned(config: Config) -> Config:
    """The same with `warm_from` as a run's own config has it: RUN@KEY with the key of that run's last stage, so that it
    is known what was taken over, and the run can be opened where RUN is no longer there.

    Raises ValueError where RUN is no finished run.
    """
    if config.warm_from is None or _PINNED.fullmatch(config.warm_from):
        return config
    root = Folder(config.warm_from)
    try:
        result = root.read_json("result.json")
    except OSError:
        raise ValueError(
            f"warm_from={root}: not a finished run (no result.json); train it first with out={root}"
        ) from None
    known = stage_keys(root, result)
    last = known.get(registry.model(str(result.get("model"))).final.name)
    if last is None:
        raise ValueError(f"warm_from={root}: was trained in part; finish it first with out={root}")
    return config.model_copy(update={"warm_from": f"{root}@{last}"})


def stage_keys(root: Folder, result: dict[str, Any]) -> dict[str, str]:
    """The artifact keys that the result.json of a run folder states. Raises ValueError where it states none."""
    stated = result.get("keys")
    if not isinstance(stated, dict):
        raise ValueError(f"{root}/result.json: damaged or changed (it names no stages); train again")
    return stated


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


def groups(config: Config, steps: list[str]) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """(on workers, steps that run together): a start-up each, so as few as can be.

    What runs on actors, as environment models can, is led by the driver, which holds no workers meanwhile.
    """
    stages = registry.model(config.model).stages
    led = [stage.name for stage in stages if stage.actors == "always" or (stage.actors and config.actors)]
    here = [not config.workers or name in led for name in steps]
    start = 0
    for at in range(1, len(steps) + 1):
        if at == len(steps) or here[at] != here[start]:
            yield not here[start], tuple(steps[start:at])
            start = at
