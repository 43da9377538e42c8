"""A recommender and a stage as a user of m3dist writes them, outside the library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from m3dist.config import Config
from m3dist.evaluation.ranking import Scorer
from m3dist.models.base import Given, Recommender, Settings, xavier
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context


@dataclass(frozen=True)
class FactorSettings(Settings):
    scale: float = 1.0


class Factors(Recommender):
    """Matrix factorisation with BPR, whose scores are scaled."""

    Options = FactorSettings

    def __init__(self, given: Given, settings: FactorSettings):
        super().__init__(given, settings)
        self.scale = settings.scale
        self.user, self.item = xavier(given.n_users, settings.dim), xavier(given.n_items, settings.dim)

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.user * self.scale, self.item

    def ego(self) -> tuple[Tensor, Tensor | None]:
        return self.user, self.item


def lean(context: Context) -> Output:
    """A stage: how far scores should lean on popularity, of as many values as the section has epochs."""
    trained, degree_I = context.read("merge"), torch.from_numpy(context.dataset.degrees[1]).float()
    popularity_I = degree_I / degree_I.max()
    best, kept = -1.0, torch.zeros(())
    context.tracker.begin("lean", context.checkpoints.key if context.checkpoints else "")
    for epoch in range(context.config.baseline.epochs):
        weight = torch.tensor(epoch * context.config.baseline.lr)
        tensors = {**trained, "lean": weight * popularity_I}
        metrics = context.evaluator.evaluate(scorer(tensors, context.config), "val")[0]
        context.tracker.log("lean", epoch, metrics)
        if metrics[context.config.evaluation.metric] > best:
            best, kept, found = metrics[context.config.evaluation.metric], tensors["lean"], metrics
    return Output({"0.user": trained["0.user"], "0.matrix": trained["0.matrix"], "lean": kept}, {"validation": found})


def scorer(tensors: dict[str, Tensor], config: Config) -> Scorer:
    return lambda user_u: (tensors["0.user"][user_u] @ tensors["0.matrix"].T + tensors["lean"], None)
