"""The loss for a data set: a short fit of every candidate on all features, the best on validation data wins.

Each candidate has its learning rate fall to 0 in its own short fit: a fit that is cut off misjudges losses that gain
most at the end.
"""

from __future__ import annotations

import math
from typing import Any

from m3dist.config import Backbone, Config, Fit, ResolvedBackbone
from m3dist.method.merge import MergeTask
from m3dist.storage.artifacts import Output
from m3dist.training.callbacks import Stopped
from m3dist.training.context import Context
from m3dist.training.loop import Plan, fit, log_epoch

TEMPERATURES = (0.2, 0.4)  # of the softmax: what suits dense data, and sparse data
CONTENT = (1e-3, 1e-2)  # L2 on projections: how loudly content speaks
_LEVEL = 0.01  # temperatures whose metrics differ by less are level; what lies between them is taken


def candidates(backbone: Backbone) -> list[ResolvedBackbone]:
    """What is raced: UltraGCN's loss, and the softmax with all values of what the config leaves open."""
    taus = TEMPERATURES if backbone.tau is None else (backbone.tau,)
    l2s = CONTENT if backbone.projection_l2 is None else (backbone.projection_l2,)
    given: list[dict[str, Any]] = [{"loss": "softmax", "tau": tau, "projection_l2": l2} for tau in taus for l2 in l2s]
    return [backbone.model_copy(update=values).resolved for values in [*given, {"loss": "ultragcn"}]]


def shortened(config: Config, interactions: int) -> Fit:
    """How long every candidate is fitted: a share of stage 3's epochs, one evaluation, at the end."""
    settings, merge = config.race, config.merge
    per_epoch = math.ceil(interactions / min(merge.batch_size, interactions))
    epochs = max(round(merge.length(interactions) * settings.share), math.ceil(settings.steps / per_epoch))
    epochs = max(1, min(epochs, merge.length(interactions)))
    return merge.model_copy(update={"epochs": epochs, "evaluate_every": epochs, "patience": 0})


def chosen(raced: list[tuple[ResolvedBackbone, float]]) -> ResolvedBackbone:
    """The winner, by validation metrics; between two temperatures that are level, their geometric mean."""
    winner, best = max(raced, key=lambda pair: pair[1])
    if winner.loss == "softmax":
        alike = [(one.tau, value) for one, value in raced if one.model_copy(update={"tau": winner.tau}) == winner]
        level = [tau for tau, value in alike if value >= best * (1 - _LEVEL)]
        return winner.model_copy(update={"tau": round(math.prod(level) ** (1 / len(level)), 4)})
    return winner


def _named(backbone: ResolvedBackbone) -> str:
    if backbone.loss == "ultragcn":
        return backbone.loss
    return f"softmax tau {backbone.tau:g} projection_l2 {backbone.projection_l2:g}"


def run(context: Context) -> Output:
    """Race the candidates: no tensors; in the meta the winner, `backbone`, and every candidate's metric, `tried`."""
    config, metric, tracker = context.config, context.config.evaluation.metric, context.tracker
    settings = shortened(config, context.dataset.size("train"))
    raced: list[tuple[ResolvedBackbone, float]] = []
    tried: dict[str, float] = {}
    for backbone in candidates(config.backbone):
        name = _named(backbone)
        here = context.under(config.model_copy(update={"backbone": backbone, "merge": settings}))
        task = MergeTask(here, [here.data.all_features])
        metrics = fit(task, Plan(f"race {name}", settings, metric), tracker)
        raced.append((backbone, metrics[metric]))
        tried[name] = metrics[metric]
    best = chosen(raced)
    tracker.begin("race", context.checkpoints.key if context.checkpoints else "")
    if log_epoch(tracker, context.engine, "race", 0, tried):
        raise Stopped("race: stopped")
    said = ", ".join(f"{name} {value:.4f}" for name, value in tried.items())
    tracker.say(f"race: {_named(best)} ({said})")
    return Output({}, {"backbone": best.model_dump(mode="json"), "tried": tried, "metric": metric})
