"""Models as data: the stages that each one trains, what a stage reads, and how its progress is counted.

Everything that has to know about stages derives it from here: the keys of artifacts, the plan of a run, the rungs of
a search, the budgets of a study. A new stage is a function and a `StageSpec`; a new model is a `ModelSpec`. A
recommender of one stage is a class (see `m3dist.models.base`), found by its name here, by the entry point
`m3dist.recommenders` of any installed package, or by the decorator `recommender`.

Code is named as "module:attribute" and imported when it is used, so that reading this file costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

ENTRY_POINTS = "m3dist.recommenders"


@dataclass(frozen=True)
class StageSpec:
    """One stage of a model.

    run: a function of a `training.context.Context` that returns a `training.context.Output`. section: of the config.
    about: what it does, for `m3dist train --explain`.
    inputs: stages of the same model whose artifacts it reads, where the run has them. reads: further config keys that
    change its output.
    lengths: fields of its section that make the stage longer. validates: whether it logs validation metrics of what it
    trains. actors: whether the driver can lead it with Ray actors; always: whether it does so in place of workers even
    where the run has none. seeded: whether its output depends on the seed. only: a value of the config and what it must
    be for the stage to be there. takes_over: the function in place of `run` for a run that starts from another one.
    warm_start: whether `run` itself does, with that one's rows.
    """

    name: str
    run: str
    section: str
    inputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ("epochs",)
    validates: bool = True
    actors: bool | Literal["always"] = False
    seeded: bool = True
    only: tuple[str, Any] | None = None
    takes_over: str | None = None
    warm_start: bool = False
    about: str = ""

    def function(self, config: Any) -> str:
        """What computes the stage in a run of this config."""
        return self.run if config.warm_from is None or self.takes_over is None else self.takes_over

    def planned(self, config: Any) -> bool:
        """Whether a run of this config has the stage."""
        if self.only is None:
            return True
        found = config
        for name in self.only[0].split("."):
            found = getattr(found, name)
        return bool(found == self.only[1])


@dataclass(frozen=True)
class ModelSpec:
    """A value of the config key `model`.

    scorer: a function of (the last stage's tensors, config) that returns an `evaluation.ranking.Scorer`. members: how
    many backbones its widest stage trains, "one" or "modalities"; "nodes" for recommenders whose tables hold users and
    items of every modality. masks: a function of a `training.context.Context` that reads the masks of a run.
    """

    name: str
    stages: tuple[StageSpec, ...]
    scorer: str
    members: str = "one"
    masks: str | None = None
    needs_features: bool = False

    @property
    def final(self) -> StageSpec:
        """The stage whose artifact ranks."""
        return self.stages[-1]

    def planned(self, config: Any) -> tuple[StageSpec, ...]:
        """The stages of a run of this config."""
        return tuple(stage for stage in self.stages if stage.planned(config))

    def stage(self, name: str) -> StageSpec:
        return next(stage for stage in self.stages if stage.name == name)


_BACKBONE = ("backbone", "optimizer", "evaluation.metric", "deepspeed", "precision")
_SHORT = ("merge.epochs", "merge.batch_size", "merge.lr", "merge.decay")  # what a short fit takes from stage 3
_GRAPH = StageSpec(
    "graph", "m3dist.method.graph:run", "graph", reads=("backbone.neighbours",), lengths=(), validates=False,
    actors="always", seeded=False, only=("backbone.reads_graph", True),
    about="finds the items nearest to each item, by the users who took both; UltraGCN's loss reads them",
)  # fmt: skip
_RACE = StageSpec(
    "race", "m3dist.method.race:run", "race", ("graph",), (*_SHORT, *_BACKBONE), lengths=("steps",), validates=False,
    only=("backbone.loss", "auto"), takes_over="m3dist.method.warm:loss",
    about="fits every candidate loss for a short time on all features; validation data choose",
)  # fmt: skip
_NAIVE = StageSpec(
    "merge", "m3dist.method.merge:naive", "merge", ("graph", "race", "second"), _BACKBONE, warm_start=True,
    about="trains one recommender on all features side by side",
)  # fmt: skip
_BASELINE = StageSpec(
    "baseline", "m3dist.method.recommender:run", "baseline", reads=("model", *_BACKBONE[2:]),
    about="trains the recommender on all features",
)  # fmt: skip


def _second(of: str, *inputs: str) -> StageSpec:
    """The stage before `merge` that trains its members under the loss which came second in the race."""
    return StageSpec(
        "second", f"m3dist.method.merge:{of}_second", "merge", ("graph", "race", *inputs), _BACKBONE,
        only=("fuses_losses", True), warm_start=True,
        about="trains what stage 3 trains under the loss that came second, unless it is far behind",
    )  # fmt: skip


_ROUNDS = StageSpec(
    "invariance", "m3dist.method.invariance:aligned", "invariance", ("race", "align"), _BACKBONE,
    lengths=("environment_steps", "mask_steps"), validates=False, actors=True,
    takes_over="m3dist.method.warm:masks",
    about="looks for parts of the interactions in which features predict differently; masks keep what predicts alike",
)  # fmt: skip

_SELECTION = StageSpec(
    "selection", "m3dist.method.race:of_modalities", "race", ("graph", "race", "align", "invariance"),
    (*_SHORT, *_BACKBONE), lengths=("steps",), validates=False, only=("merge.masks", "auto"),
    takes_over="m3dist.method.warm:selection",
    about="fits stage 3 for a short time with masks and without; validation data choose",
)  # fmt: skip

MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "m3-invrl",
            (
                _GRAPH,
                _RACE,
                StageSpec(
                    "align",
                    "m3dist.method.align:run",
                    "align",
                    ("graph", "race"),
                    _BACKBONE,
                    takes_over="m3dist.method.warm:representations",
                    about="learns what the modalities share and what each has alone, beside one recommender",
                ),
                _ROUNDS,
                _SELECTION,
                _second("per_modality", "align", "invariance", "selection"),
                StageSpec(
                    "merge",
                    "m3dist.method.merge:per_modality",
                    "merge",
                    ("graph", "race", "align", "invariance", "selection", "second"),
                    _BACKBONE,
                    warm_start=True,
                    about="trains a recommender per modality, and learns how much each counts for a user",
                ),
            ),
            "m3dist.method.fused:scorer",
            members="modalities",
            masks="m3dist.evaluation.masks:of_representations",
            needs_features=True,
        ),
        ModelSpec("ultragcn", (_GRAPH, _RACE, _second("naive"), _NAIVE), "m3dist.method.fused:scorer"),
        ModelSpec(
            "ensemble",
            (
                _GRAPH,
                _RACE,
                _second("several"),
                replace(
                    _NAIVE,
                    run="m3dist.method.merge:several",
                    about="trains as many recommenders as there are modalities, each on all features, and fuses them",
                ),
            ),
            "m3dist.method.fused:scorer",
            members="modalities",
            needs_features=True,
        ),
        ModelSpec(
            "invrl",
            (
                _GRAPH,
                _RACE,
                replace(_NAIVE, name="pretrain", inputs=("graph", "race"), only=("warm_from", None), warm_start=False),
                replace(_ROUNDS, run="m3dist.method.invariance:concatenated", inputs=("race", "pretrain")),
                replace(
                    _SELECTION,
                    run="m3dist.method.race:of_features",
                    inputs=("graph", "race", "pretrain", "invariance"),
                ),
                _second("masked", "pretrain", "invariance", "selection"),
                StageSpec(
                    "merge",
                    "m3dist.method.merge:masked",
                    "merge",
                    ("graph", "race", "pretrain", "invariance", "selection", "second"),
                    _BACKBONE,
                    warm_start=True,
                    about="trains one recommender on the features that the mask keeps",
                ),
            ),
            "m3dist.method.fused:scorer",
            masks="m3dist.evaluation.masks:of_features",
            needs_features=True,
        ),
    )
}
RECOMMENDERS: dict[str, str | type] = {
    "vbpr": "m3dist.models.vbpr:VBPR",
    "duif": "m3dist.models.duif:DUIF",
    "cb2cf": "m3dist.models.cb2cf:CB2CF",
    "ngcf": "m3dist.models.ngcf:NGCF",
    "lightgcn": "m3dist.models.lightgcn:LightGCN",
    "disengcn": "m3dist.models.disengcn:DisenGCN",
    "macridvae": "m3dist.models.macridvae:MacridVAE",
    "mmgcn": "m3dist.models.mmgcn:MMGCN",
    "huign": "m3dist.models.huign:HUIGN",
    "grcn": "m3dist.models.grcn:GRCN",
}
Class = TypeVar("Class", bound=type)


def recommender(name: str) -> Callable[[Class], Class]:
    """A decorator that makes a class a value of the config key `model` in this process and in its workers."""

    def remember(kind: Class) -> Class:
        register({name: kind})
        return kind

    return remember


def registered() -> dict[str, type]:
    """The classes that the decorator registered in this process; `register` takes them in another."""
    return {name: kind for name, kind in RECOMMENDERS.items() if isinstance(kind, type)}


def register(classes: dict[str, type]) -> None:
    """Make classes known by these names in this process."""
    RECOMMENDERS.update(classes)


def names() -> list[str]:
    """Every value that `model` can have, those of installed packages included."""
    return [*MODELS, *RECOMMENDERS, *(point.name for point in entry_points(group=ENTRY_POINTS))]


def model(name: str) -> ModelSpec:
    """The model of that name. Raises ValueError, which names the nearest one, when there is none."""
    if name in MODELS:
        return MODELS[name]
    if name in RECOMMENDERS or name in (known := names()):
        return ModelSpec(name, (_BASELINE,), "m3dist.method.recommender:scorer", members="nodes")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"no such model; expected one of {', '.join(known)}{hint}")


def recommender_class(name: str) -> Any:
    """The class of a recommender. Raises KeyError when no recommender has that name."""
    found = RECOMMENDERS.get(name)
    if found is None:
        point = next((point for point in entry_points(group=ENTRY_POINTS) if point.name == name), None)
        if point is None:
            raise KeyError(name)
        found = point.load()
    return load(found) if isinstance(found, str) else found


def load(reference: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
