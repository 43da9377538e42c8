"""What validation data decide before a long fit: the loss, and whether stage 3 reads through the learned masks.

Every candidate has a short fit in which its learning rate falls to 0 (a fit that is cut off misjudges losses that gain
most at the end), and the best on validation data wins. UltraGCN's loss is near its best early and the softmax gains
longer, so where they are close the best softmax and every candidate under UltraGCN's loss have a longer fit, of which
the best epoch counts, as in stage 3: on few interactions UltraGCN's loss is past its best when the rate is 0, sooner
where its L2 is small, so that a short fit misjudges that, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from m3dist.config import Backbone, Config, Fit, ResolvedBackbone
from m3dist.method import merge
from m3dist.method.content import Contents
from m3dist.method.merge import MergeTask
from m3dist.storage.artifacts import Output
from m3dist.training.callbacks import Stopped
from m3dist.training.context import Context
from m3dist.training.loop import Plan, fit, log_epoch

TEMPERATURES = (0.2, 0.4)  # of the softmax: what suits dense data, and sparse data
CONTENT = (1e-3, 1e-2)  # L2 on projections: how loudly content speaks
ROWS = (3e-2, 5e-2)  # L2 of rows under UltraGCN's loss, on which the metrics depend more than under the softmax
DROPOUT = 0.2  # of items' ids, which sparse data gain by and dense data lose by
_CLOSE = 0.05  # losses whose metrics differ by less are close
_BESIDE = 0.2  # a loss whose metric is further behind adds nothing to members of the other
_HOPELESS = 0.6  # of the softmax's metric: below it no other weight of rows brings UltraGCN's loss so far
LONGER = 2  # times the short fit
_LEVEL = 0.01  # temperatures whose metrics differ by less are level; what lies between them is taken
_KEPT = 0.01  # of epochs this close to the best the last counts; more would favour a loss that is not past its best


def candidates(backbone: Backbone, features: bool = True) -> list[ResolvedBackbone]:
    """What may be raced: the softmax and UltraGCN's loss, each with all values of what the config leaves open.

    features: whether items have any; without them what content weighs is not raced.
    """
    taus = TEMPERATURES if backbone.tau is None else (backbone.tau,)
    given: list[dict[str, Any]] = [{"loss": "softmax", "tau": tau} for tau in taus]
    if features and backbone.projection_l2 is None:
        given = [{**values, "projection_l2": l2} for values in given for l2 in CONTENT]
    given += [{"loss": "ultragcn", "l2": l2} for l2 in (ROWS if backbone.l2 is None else (backbone.l2,))]
    return [backbone.model_copy(update=values).resolved for values in given]


def shortened(config: Config, interactions: int, times: int = 1) -> Fit:
    """How long a candidate is fitted: `times` a share of the epochs of stage 3. A short fit is evaluated at its end."""
    settings, merge = config.race, config.merge
    per_epoch = math.ceil(interactions / min(merge.batch_size, interactions))
    epochs = times * max(round(merge.length(interactions) * settings.share), math.ceil(settings.steps / per_epoch))
    epochs = max(1, min(epochs, merge.length(interactions)))
    every = epochs if times == 1 else "auto"
    return merge.model_copy(update={"epochs": epochs, "evaluate_every": every, "patience": 0, "level": _KEPT})


def chosen(raced: list[tuple[ResolvedBackbone, float]]) -> ResolvedBackbone:
    """The best softmax by validation metrics; between two temperatures that are level, their geometric mean."""
    winner, best = max(raced, key=lambda pair: pair[1])
    alike = [(one.tau, value) for one, value in raced if one.model_copy(update={"tau": winner.tau}) == winner]
    level = [tau for tau, value in alike if value >= best * (1 - _LEVEL)]
    return winner.model_copy(update={"tau": round(math.prod(level) ** (1 / len(level)), 4)})


def _named(backbone: ResolvedBackbone) -> str:
    if backbone.loss == "ultragcn":
        return f"ultragcn l2 {backbone.l2:g}"
    dropout = f" id_dropout {backbone.id_dropout:g}" if backbone.id_dropout else ""
    return f"softmax tau {backbone.tau:g} projection_l2 {backbone.projection_l2:g}{dropout}"


class _Tried:
    """What candidates reached, by name. Each is fitted once, also where the stage is cut off and goes on."""

    def __init__(self, context: Context, what: str):
        self.what, self.checkpoints = what, context.checkpoints
        saved = self.checkpoints.latest() if self.checkpoints else None
        self.reached: dict[str, float] = dict(saved.meta["tried"]) if saved else {}

    def metric(self, name: str, context: Context, contents: Contents, times: int = 1) -> float:
        """The validation metric of a short fit of stage 3, or of one `times` as long, under the context's backbone."""
        if name not in self.reached:
            config, metric = context.config, context.config.evaluation.metric
            settings = shortened(config, context.dataset.size("train"), times)
            task = MergeTask(context.under(config.model_copy(update={"merge": settings})), contents)
            plan = Plan(f"{self.what} {name}", settings, metric, (config.backbone,))
            self.reached[name] = fit(task, plan, context.tracker)[metric]
            if self.checkpoints is not None:
                self.checkpoints.save(f"{len(self.reached):05d}", {"tried": self.reached}, {})
        return self.reached[name]


Metric = Callable[[ResolvedBackbone], float]  # of a short fit


def softmaxes(candidates: list[ResolvedBackbone], metric: Metric) -> list[tuple[ResolvedBackbone, float]]:
    """Candidates under the softmax of which the best is among the best of all, and their metrics: every temperature at
    the first weight of content, and the other weights at the best of these.

    Where the temperatures were level and another weight is best, all have that weight, too: `chosen` may take what lies
    between them.
    """
    content = candidates[0].projection_l2
    raced = [(one, metric(one)) for one in candidates if one.projection_l2 == content]
    best, reached = max(raced, key=lambda pair: pair[1])
    level = [one.tau for one, value in raced if value >= reached * (1 - _LEVEL)]
    others = [one for one in candidates if one.projection_l2 != content]
    raced += [(one, metric(one)) for one in others if one.tau == best.tau]
    content = max(raced, key=lambda pair: pair[1])[0].projection_l2
    done = [one for one, _ in raced]
    missing = [one for one in others if one.projection_l2 == content and one.tau in level and one not in done]
    return [*raced, *((one, metric(one)) for one in missing)]


def run(context: Context) -> Output:
    """Race the candidates: no tensors; in the meta the winner, `backbone`, every candidate's metric, `tried`, and the
    best of the other loss, `second`, unless it is far behind."""
    tried, features = _Tried(context, "race"), bool(context.dataset.modalities)

    def metric(backbone: ResolvedBackbone, times: int = 1) -> float:
        name = _named(backbone) + (" longer" if times > 1 else "")
        here = context.under(context.config.model_copy(update={"backbone": backbone}))
        return tried.metric(name, here, merge.whole(here), times)

    every = candidates(context.config.backbone, features)
    raced = softmaxes([one for one in every if one.loss == "softmax"], metric)
    softmax, best_softmax = chosen(raced), max(value for _, value in raced)
    if features and context.config.backbone.id_dropout is None:
        dropping = softmax.model_copy(update={"id_dropout": DROPOUT})
        if (value := metric(dropping)) > best_softmax:
            softmax, best_softmax = dropping, value
    short, longer = (shortened(context.config, context.dataset.size("train"), times).epochs for times in (1, LONGER))

    def close(value: float) -> bool:
        return longer != short and min(best_softmax, value) > (1 - _CLOSE) * max(best_softmax, value)

    others, raced = [one for one in every if one.loss == "ultragcn"], []
    for one in others:
        raced.append((one, value := metric(one)))
        if close(value) or value < _HOPELESS * best_softmax:
            break
    other, reached = max(raced, key=lambda pair: pair[1])
    if close(reached):
        best_softmax = metric(softmax, LONGER)
        other, reached = max(((one, metric(one, LONGER)) for one in others), key=lambda pair: pair[1])
    best = softmax if best_softmax >= reached else other
    second, behind = (other, reached) if best == softmax else (softmax, best_softmax)
    beside = behind >= (1 - _BESIDE) * max(best_softmax, reached)
    return _said(
        context, "race", _named(best), tried.reached,
        {"backbone": best.model_dump(mode="json"), "second": second.model_dump(mode="json") if beside else None},
    )  # fmt: skip


def of_modalities(context: Context) -> Output:
    """Learned masks of M3-InvRL or one: no tensors; in the meta `masks` and both metrics, `tried`."""
    return _masks(context, merge.modalities)


def of_features(context: Context) -> Output:
    """The same for InvRL."""
    return _masks(context, merge.features)


def _masks(context: Context, contents: Callable[[Context, str], Contents]) -> Output:
    tried = _Tried(context, "masks")
    for masks in ("learned", "one"):
        tried.metric(masks, context, contents(context, masks))
    best = max(tried.reached, key=tried.reached.__getitem__)  # learned where they are level
    return _said(context, "selection", best, tried.reached, {"masks": best})


def _said(context: Context, stage: str, best: str, tried: dict[str, float], meta: dict[str, Any]) -> Output:
    """Log the metrics as the stage's only line, and say who won."""
    tracker = context.tracker
    tracker.begin(stage, context.checkpoints.key if context.checkpoints else "")
    if log_epoch(tracker, context.engine, stage, 0, tried):
        raise Stopped(f"{stage}: stopped")
    tracker.say(f"{stage}: {best} ({', '.join(f'{name} {value:.4f}' for name, value in tried.items())})")
    return Output({}, {**meta, "tried": tried, "metric": context.config.evaluation.metric})
