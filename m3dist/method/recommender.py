"""One stage that trains any recommender of `config.RECOMMENDERS`, under the same loop, engine and ranking as ours.

Its artifact holds the tensors that the recommender's `score` reads.
"""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor

from m3dist.config import RECOMMENDERS, Config
from m3dist.data.dataset import Dataset
from m3dist.data.sampling import Batch, Sampler
from m3dist.distributed.engine import Engine
from m3dist.distributed.tables import RowTable
from m3dist.evaluation import ranking
from m3dist.method.backbone import Data
from m3dist.models.base import Given, Recommender
from m3dist.seeding import derive
from m3dist.storage.checkpoints import Checkpoints
from m3dist.training.loop import fit
from m3dist.training.tracking import Tracker


def recommender(name: str) -> type[Recommender]:
    """The class that `name` stands for."""
    module, _, attribute = RECOMMENDERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def scorer(name: str, tensors: dict[str, Tensor]) -> ranking.Scorer:
    """A trained recommender, ready to rank."""
    return partial(recommender(name).score, tensors)


def options(config: Config) -> dict[str, Any]:
    """`baseline.options`, checked against the recommender's keyword-only arguments; ValueError names the key."""
    parameters = inspect.signature(recommender(config.model)).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    out = {}
    for key, value in config.baseline.options.items():
        if key not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"baseline.options.{key}: {config.model} has no such option; {have}")
        default = known[key]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if type(value) is not type(default):
            raise ValueError(f"baseline.options.{key}: expected {type(default).__name__}, got {value!r}")
        out[key] = value
    return out


class BaselineTask:
    def __init__(self, data: Data, config: Config):
        self.data, self.config = data, config
        settings, kind = config.baseline, recommender(config.model)
        given = Given(data.n_users, data.n_items, data.features(), data.user, data.item)
        with torch.random.fork_rng():
            torch.manual_seed(derive(config.seed, "baseline", "init"))
            model = kind(given, settings.dim, settings.l2, **options(config))
        self.model = model
        self.tables: dict[str, RowTable] = {}
        self.dense = data.engine.wrap(model, [{"params": list(model.parameters()), "lr": settings.lr}])
        user, item, size = data.user, data.item, settings.batch_size
        if kind.batches == "users":  # as many as hold that many interactions on average
            user = torch.unique(user)
            size = max(1, round(size * len(user) / len(item)))
            item = torch.zeros_like(user)
        self.sampler = Sampler(
            user, item, data.n_items, batch_size=size, negatives=settings.negatives,
            per_positive=settings.sampling == "per_positive", seed=config.seed, purpose="baseline",
        )  # fmt: skip

    def step(self, batch: Batch) -> dict[str, Tensor]:
        terms = self.dense("loss", batch)
        self.dense.backward(terms["loss"])
        self.dense.step()
        return {name: x.detach() for name, x in terms.items()}

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """What `score` reads."""
        return {name: x.detach() for name, x in self.dense("tensors").items()}

    def evaluate(self) -> dict[str, float]:
        return self.data.evaluate(scorer(self.config.model, self.tensors()), "val")[0]

    def state(self) -> dict[str, Tensor]:
        return self.dense.state()


def run(
    dataset: Dataset,
    config: Config,
    tracker: Tracker,
    engine: Engine | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[dict[str, Tensor], dict]:
    """Train the recommender of `config.model`. Returns its tensors and the best validation metrics."""
    task = BaselineTask(Data(dataset, config, engine), config)
    best = fit(task, config.baseline, config.evaluation.metric, "baseline", tracker, checkpoints)
    return task.tensors(), {"validation": {k: v for k, v in best.items() if k != "epoch"}, "epoch": best.get("epoch")}
