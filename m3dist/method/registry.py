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
from typing import Any, TypeVar

ENTRY_POINTS = "m3dist.recommenders"


@dataclass(frozen=True)
class StageSpec:
    """One stage of a model.

    run: a function of a `training.context.Context` that returns a `training.context.Output`. section: of the config.
    inputs: stages of the same model whose artifacts it reads. reads: further config keys that change its output.
    steps: the field of its section that says how often it logs; passes: the fields that together say how many passes
    over the interactions are behind one of them, none where it is one. validates: whether it logs validation metrics.
    actors: whether the driver can lead it with Ray actors.
    """

    name: str
    run: str
    section: str
    inputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    steps: str = "epochs"
    passes: tuple[str, ...] = ()
    validates: bool = True
    actors: bool = False

    @property
    def lengths(self) -> tuple[str, ...]:
        """The fields of the section that make the stage longer."""
        return self.passes or (self.steps,)

    def passes_per_step(self, section: Any) -> int:
        """Passes over the interactions behind one logged step."""
        return sum(getattr(section, name) for name in self.passes) if self.passes else 1


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

    def stage(self, name: str) -> StageSpec:
        return next(stage for stage in self.stages if stage.name == name)


_BACKBONE = ("backbone", "optimizer", "evaluation.metric", "deepspeed", "precision")
_NAIVE = StageSpec("merge", "m3dist.method.merge:naive", "merge", reads=_BACKBONE)
_BASELINE = StageSpec("baseline", "m3dist.method.recommender:run", "baseline", reads=("model", *_BACKBONE[2:]))
_ROUNDS = StageSpec(
    "invariance", "m3dist.method.invariance:aligned", "invariance", inputs=("align",), reads=_BACKBONE, steps="rounds",
    passes=("environment_epochs", "mask_epochs"), validates=False, actors=True,
)  # fmt: skip

MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "m3-invrl",
            (
                StageSpec("align", "m3dist.method.align:run", "align", reads=_BACKBONE),
                _ROUNDS,
                StageSpec("merge", "m3dist.method.merge:fused", "merge", ("align", "invariance"), _BACKBONE),
            ),
            "m3dist.method.merge:scorer",
            members="modalities",
            masks="m3dist.evaluation.masks:of_representations",
            needs_features=True,
        ),
        ModelSpec("ultragcn", (_NAIVE,), "m3dist.method.merge:scorer"),
        ModelSpec(
            "invrl",
            (
                replace(_NAIVE, name="pretrain"),
                replace(_ROUNDS, run="m3dist.method.invariance:concatenated", inputs=("pretrain",)),
                StageSpec("merge", "m3dist.method.merge:masked", "merge", ("pretrain", "invariance"), _BACKBONE),
            ),
            "m3dist.method.merge:scorer",
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
