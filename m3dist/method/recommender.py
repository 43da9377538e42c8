"""One stage that trains any recommender of the registry, under the same loop, engine and ranking as the method.

Its artifact holds the tensors that the recommender's `score` reads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from m3dist.config import Baseline, Config
from m3dist.data.draws import Draws, Layout, Pairs, Plan
from m3dist.data.shards import Part
from m3dist.distributed.rows import RowTables
from m3dist.evaluation.ranking import Scorer
from m3dist.method import registry
from m3dist.models.base import Batch, Given, Recommender, Settings
from m3dist.seeding import derive
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context
from m3dist.training.loop import fit
from m3dist.training.steps import Rate

_HASHES = 4  # random numbers of a step that a recommender may draw from


def scorer(tensors: dict[str, Tensor], config: Config) -> Scorer:
    """A trained recommender, ready to rank."""
    kind = registry.recommender_class(config.model)
    return lambda user_u, mask: (kind.score(tensors, user_u), None)


def settings_of(kind: type[Recommender], name: str, section: Baseline) -> Settings:
    """The recommender's settings, of which `baseline.options` gives some. Raises ValueError that names a bad key."""
    common = {field.name for field in dataclasses.fields(Settings)}
    known = {f.name: f.default for f in dataclasses.fields(kind.Options) if f.name not in common}
    out: dict[str, Any] = {"dim": section.dim, "l2": section.l2}
    for key, value in section.options.items():
        if key not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"baseline.options.{key}: {name} has no such option; {have}")
        default = known[key]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if type(value) is not type(default):
            raise ValueError(f"baseline.options.{key}: expected {type(default).__name__}, got {value!r}")
        out[key] = value
    return kind.Options(**out)


class BaselineTask:
    """A recommender under training."""

    fixed = False  # a recommender may look at its batch

    def __init__(self, context: Context):
        config, data = context.config, context.data
        section, kind = config.baseline, registry.recommender_class(config.model)
        self.config, self.evaluator = config, context.evaluator
        user, item = data.all_pairs()
        given = Given(data.n_users, data.n_items, data.features, user, item)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(config.seed, "baseline", "init"))
            self.model = kind(given, settings_of(kind, config.model, section))
        self.tables: dict[str, RowTables] = {}
        self.rates: list[Rate] = []
        self.dense = data.engine.wrap(self.model, [{"params": list(self.model.parameters()), "lr": section.lr}])
        size = section.batch_size
        if kind.batches == "users":  # as many as hold that many interactions on average
            user = torch.unique(user)
            size = max(1, round(size * len(user) / len(item)))
            item = torch.zeros_like(user)
        part = data.part
        if kind.batches == "users":
            part = Part.even(len(user), data.engine.rank, data.engine.world)
        plan = Plan(section.negatives, section.sampling == "per_positive", hashes=_HASHES)
        pairs = Pairs(user[part.pairs], item[part.pairs], data.n_users, data.n_items, part=part)
        layout = Layout.of(part.total, size, 1, part.pairs)
        self.draws = Draws(pairs, plan, layout, derive(config.seed, "baseline"))

    def batch(self) -> Batch:
        """The step's samples, without places where there is none."""
        drawn = self.draws.draw()
        there, size = self.draws.present
        negative = drawn.negative[0, there] if self.draws.plan.per_positive else drawn.negative[0]
        return Batch(drawn.user_Pb[0, there], drawn.item_Pb[0, there], negative, size, drawn.hashes_X)

    def step(self) -> dict[str, Tensor]:
        terms = self.dense(self.batch())
        self.dense.backward(terms["loss"])
        self.dense.step()
        return {name: x.detach() for name, x in terms.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What `score` reads."""
        with self.dense.reading() as model:
            return {name: x.detach().float() for name, x in model.tensors().items()}

    def evaluate(self) -> dict[str, float]:
        return self.evaluator.evaluate(scorer(self.tensors(), self.config), "val")[0]


def run(context: Context) -> Output:
    """Train the recommender of `config.model`: its tensors and the best validation metrics."""
    task = BaselineTask(context)
    best = fit(task, context.plan, context.tracker, context.checkpoints)
    meta = {"validation": {k: v for k, v in best.items() if k != "epoch"}, "epoch": best.get("epoch")}
    return Output({**task.tensors()}, meta)
