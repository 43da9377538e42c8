"""What travels through a run: the data set, the config, the worker, its tracker, and what earlier stages left."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from m3dist.config import Config, ResolvedBackbone
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Engine
from m3dist.evaluation.evaluator import Evaluator
from m3dist.method import registry
from m3dist.method.registry import StageSpec
from m3dist.storage.checkpoints import Checkpoints
from m3dist.training.data import DeviceData
from m3dist.training.loop import Plan
from m3dist.training.tracking import Tracker

Loaded = tuple[dict[str, Tensor], dict[str, Any]]  # an artifact's tensors and meta


def _nothing(stage: str) -> Loaded:
    raise KeyError(stage)


class Context:
    """A run as one worker sees it. Without an engine it is the only worker; without a tracker it reports nothing.

    load: the artifact of an earlier stage by its name; without it a stage that needs the item-item graph makes it.
    """

    stage: StageSpec | None = None
    checkpoints: Checkpoints | None = None
    inputs: tuple[str, ...] = ()  # earlier stages of the run that this one reads
    before: Context | None = None  # the finished run that this one starts from, at its last stage

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        engine: Engine | None = None,
        tracker: Tracker | None = None,
        load: Callable[[str], Loaded] | None = None,
    ):
        self.dataset, self.config = dataset, config
        self._load = load or _nothing
        self.engine = engine or Engine()
        self.tracker = tracker or Tracker(None)
        graph = functools.partial(self.read, "graph") if load else None
        self.data = DeviceData(dataset, self.engine, config.embeddings == "sharded", graph)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.dataset, self.config.evaluation, self.engine)

    def read(self, stage: str) -> dict[str, Tensor]:
        """The tensors of an earlier stage."""
        return self._load(stage)[0]

    def meta(self, stage: str) -> dict[str, Any]:
        """What an earlier stage said beside its tensors."""
        return self._load(stage)[1]

    @property
    def masks(self) -> str:
        """The masks that members of stage 3 read through: learned, one or shuffled."""
        chosen = self.config.merge.masks
        return self.meta("selection")["masks"] if chosen == "auto" else chosen

    def at(self, stage: StageSpec, checkpoints: Checkpoints | None = None) -> Context:
        """The same run at one of its stages, with the loss that a race chose. What was read is shared."""
        _ = self.evaluator
        here = copy.copy(self)
        here.stage, here.checkpoints = stage, checkpoints
        planned = registry.model(self.config.model).planned(self.config)
        here.inputs = tuple(other.name for other in planned if other.name in stage.inputs)
        if "race" in stage.inputs and self.config.backbone.loss == "auto":
            chosen = ResolvedBackbone.model_validate(self.meta("race")["backbone"])
            return here.under(self.config.model_copy(update={"backbone": chosen}))
        return here

    def under(self, config: Config) -> Context:
        """The same under another config."""
        here = copy.copy(self)
        here.config = config
        return here

    @property
    def plan(self) -> Plan:
        """How the stage's fit runs."""
        assert self.stage is not None
        section = getattr(self.config, self.stage.section)
        model = () if self.stage.section == "baseline" else (self.config.backbone,)
        return Plan(self.stage.name, section, self.config.evaluation.metric, model)
