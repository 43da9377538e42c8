"""What a search file says: base config, space, metric, budget, scheduler, searcher; all of it validated at once.

base: ../my.yaml                  # or values: {data: data/mine, align: {epochs: 20}}
space:
  align.lr: {log_uniform: [1.0e-4, 1.0e-1]}
  lr: {grid: [0.01, 0.001], keys: [align.lr, merge.lr]}              # one value for several keys
  invariance.gate: {choice: [sigmoid, hard_sigmoid]}
  invariance.gate_noise: {uniform: [0, 0.3], when: {invariance.gate: hard_sigmoid}}
budget: {trials: 50, epochs: 2000, minutes: 60}                      # whichever is reached first
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from m3dist import config as configs
from m3dist.config import Config, ConfigError
from m3dist.data.dataset import Dataset
from m3dist.search import searchers, stages
from m3dist.search.dimensions import Dimension, Values, alone, check_conditions, check_point
from m3dist.section import Section

_FIXED = ("data", "out", "artifacts", "seed", "stages", "model", "evaluation", "synthetic", "checkpoint", "workers")


class Budget(Section):
    """The search ends at whichever is reached first; running trials then stop at their next epoch."""

    trials: PositiveInt | None = None
    epochs: PositiveInt | None = None  # trained by all trials together; a round of stage 2 and a race count as one each
    minutes: PositiveFloat | None = None  # of wall-clock time, over all runs of the search


class Scheduler(Section):
    kind: Literal["asha", "fifo"] = "asha"  # fifo: every trial runs to its end
    grace: PositiveInt = 4  # epochs of a stage before its first rung
    reduction: Annotated[float, Field(gt=1)] = 3.0  # the best 1/reduction of a rung go on


class Reuse(Section):
    on: bool = True  # off: every trial trains all its stages
    siblings: PositiveInt = 4  # proposals that share the values of the first stage in which they differ
    lookahead: PositiveInt = 32  # proposals among which one that can reuse a stage goes first


class Search(Section):
    """A search file."""

    out: str = ""  # default: runs/search-<name of the file>
    base: str | dict[str, Any] = Field(default={})  # a config file, relative to the search file, or values
    space: dict[str, Dimension] = Field(min_length=1)
    metric: str | None = None  # NAME@K on validation data; default: the base's evaluation.metric
    mode: Literal["max", "min"] = "max"
    budget: Budget
    scheduler: Scheduler = Scheduler()
    searcher: str = "random"  # a name that m3dist.search.searchers knows: random, grid, optuna
    points: tuple[dict[str, Any], ...] = ()  # tried before what the searcher proposes: values of the space
    startup: NonNegativeInt = 10  # random proposals before optuna's model is asked
    reuse: Reuse = Reuse()
    concurrency: PositiveInt | Literal["auto"] = "auto"  # trials at once; auto: what cores, GPUs and memory hold
    retries: NonNegativeInt = 1  # of a trial whose process died
    final_seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)  # the chosen config is trained and tested with each
    seed: NonNegativeInt = 0  # of the proposals

    @pydantic.field_validator("searcher")
    @classmethod
    def _known(cls, searcher: str) -> str:
        searchers.find(searcher)
        return searcher

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Search:
        if self.budget.trials is self.budget.epochs is self.budget.minutes is None:
            raise ValueError("budget: expected at least one of trials, epochs and minutes")
        check_conditions(self.space)
        searchers.find(self.searcher).check(self.space)
        for at, point in enumerate(self.points):
            check_point(self.space, point, f"points[{at}]")
        return self


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search file, checked against its base config and data.

    space: dimensions in the order of the stages whose artifacts they change first, conditions before what hangs on
    them. stage: of every dimension.
    """

    search: Search
    base: Config
    dataset: Dataset
    space: dict[str, Dimension]
    stage: dict[str, str]

    @property
    def out(self) -> Path:
        return Path(self.search.out)

    @property
    def metric(self) -> str:
        return self.base.evaluation.metric

    @property
    def size(self) -> float:
        """Points of the space, conditions aside; inf where a dimension is continuous."""
        return math.prod(dimension.size for dimension in self.space.values())

    def config(self, values: Values) -> Config:
        """Raises ConfigError when the values do not fit the base."""
        return applied(self.base, self.space, values)

    def keys(self, values: Values) -> dict[str, str]:
        """The artifact key of every stage."""
        return stages.keys(self.config(values), self.dataset)

    @property
    def stages(self) -> list[str]:
        return stages.planned(self.base)

    @property
    def shared(self) -> str:
        """The first stage that differs between points; empty where no later one does and siblings would be equal."""
        varied = [stage for stage in self.stages if stage in self.stage.values()]
        return varied[0] if len(varied) > 1 else ""

    def extremes(self) -> list[Config]:
        """The base and every dimension's values, one at a time."""
        return [self.base, *(self.config(values) for name in self.space for values in alone(self.space, name))]

    def identity(self) -> str:
        """What two runs of the same search have in common; budget, concurrency and final seeds may change."""
        kept = self.search.model_dump(exclude={"out", "base", "budget", "concurrency", "retries", "final_seeds"})
        base = self.base.model_dump(exclude={"out", "artifacts", "data", "checkpoint"})
        return configs.digest([kept, base, self.dataset.fingerprint])


def applied(base: Config, space: Mapping[str, Dimension], values: Values) -> Config:
    """The base config with the values of a point. Raises ConfigError when they do not fit it."""
    raw = base.model_dump()
    for name, value in values.items():
        for key in space[name].keys or (name,):
            section, *rest = raw, *key.split(".")
            while len(rest) > 1:
                section = section.setdefault(rest.pop(0), {})
                if not isinstance(section, dict):
                    raise ConfigError(f"{key}: no such key")
            section[rest[0]] = value
    return configs.validate(raw, "config")


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Plan:
    """Read a search file as `read` does, and check it against its base config and data."""
    search, base = read(path, overrides)
    out = Path(search.out or f"runs/search-{Path(path).stem}").absolute()
    return checked(search.model_copy(update={"out": str(out)}), base, str(path))


def read(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[Search, Config]:
    """A search file and its base config with `key=value` overrides; opens no data.

    An override of a key of the search file changes the search; any other key, or base.KEY, changes the base config.
    Raises ConfigError listing all problems.
    """
    mine, base_overrides = _sorted(path, overrides)
    raw = configs.read(Path(path), mine)
    problems: list[str] = []
    search = base = None
    try:
        search = configs.validate(raw, str(path), Search)
    except ConfigError as error:
        problems += str(error).splitlines()
    try:
        base = _base(Path(path), raw, base_overrides)
    except ConfigError as error:
        problems += str(error).splitlines()
    if search is None or base is None:
        raise ConfigError("\n".join(problems))
    for name, value in (("out", search.out), ("artifacts", base.artifacts or "")):
        if "://" in value:
            raise ConfigError(f"{name}={value}: trials meet in a folder that all nodes mount; a URI cannot be locked")
    return search, base


def _sorted(path: str | Path, overrides: list[str] | tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Overrides of the search file, and those of the base config."""
    mine, base = [], []
    for item in overrides:
        key = item.partition("=")[0]
        if key.startswith("base."):
            base.append(item.removeprefix("base."))
        elif key.split(".")[0] == "space":
            raise ConfigError(f"{key}: edit the space in {path}")
        elif key.split(".")[0] in Search.model_fields or key.split(".")[0] not in Config.model_fields:
            mine.append(item)
        else:
            base.append(item)
    return mine, base


def _base(path: Path, raw: dict[str, Any], overrides: list[str]) -> Config:
    """The base config that the plain values of a search file name or hold."""
    base = raw.get("base", {})
    if raw.get("metric") is not None:
        overrides = [*overrides, f"evaluation.metric={raw['metric']}"]
    if isinstance(base, str):
        beside = path.parent / base
        return configs.load(beside if beside.exists() else base, overrides)
    if not isinstance(base, dict):
        return configs.load(None, overrides)  # the search file's own problem says what is wrong
    name = f"{path}: base"
    return configs.validate(configs.read(base, overrides, name), name)


def checked(search: Search, base: Config, source: str = "search") -> Plan:
    """A plan whose every value fits the base. Raises ConfigError listing those that do not."""
    if problems := _fixed(search, base) or _unfit(search, base):
        raise ConfigError(f"{source}:\n" + "\n".join(f"  {line}" for line in problems))
    base, dataset = _placed(search, base)
    first = _first_changed(search.space, base, dataset)
    if idle := [name for name, stage in first.items() if not stage and len(search.space[name].ends()) > 1]:
        raise ConfigError(f"{source}: {', '.join(idle)}: changes nothing that is trained")
    return Plan(search, base, dataset, _ordered(search.space, first, stages.planned(base)), first)


def _fixed(search: Search, base: Config) -> list[str]:
    """What makes trials of a search incomparable."""
    problems = []
    if not stages.ranks(base):
        problems.append("base.stages: a search compares trials after their last stage, which is missing")
    for name, dimension in search.space.items():
        for key in dimension.keys or (name,):
            if key.split(".")[0] in _FIXED:
                problems.append(f"space.{name}: {key} must be the same in all trials; set it in base")
    return problems


def _unfit(search: Search, base: Config) -> list[str]:
    """Values of the space that the base config refuses, or beside which it has other stages."""
    problems = []
    for name, dimension in search.space.items():
        seen = set()
        for values in alone(search.space, name):
            try:
                there = stages.planned(applied(base, search.space, values))
            except ConfigError as error:
                seen |= {line.strip() for line in str(error).splitlines()[1:]} or {str(error)}
                continue
            if not dimension.when and there != stages.planned(base):
                theirs, ours = ", ".join(there), ", ".join(stages.planned(base))
                seen.add(
                    f"{values[name]!r} trains the stages {theirs}, the base {ours}; search values that train the same "
                    f"stages, and set one of them in base"
                )
        problems += [f"space.{name}: {line}" for line in sorted(seen)]
    return problems


def _placed(search: Search, base: Config) -> tuple[Config, Dataset]:
    """The base config with absolute paths of its data and of the store that trials share, and the data set."""
    if base.data == "synthetic":  # made once, not in every trial's folder
        made = stages.open_data(base.model_copy(update={"out": search.out})).root
        base = base.model_copy(update={"data": str(made)})
    dataset = stages.open_data(base)
    artifacts = base.artifacts or str(Path(search.out) / "artifacts")
    return base.model_copy(update={"out": search.out, "artifacts": artifacts}).placed(), dataset


def _first_changed(space: Mapping[str, Dimension], base: Config, dataset: Dataset) -> dict[str, str]:
    """The first stage whose artifact each dimension changes; empty where it changes none."""
    first = {}
    for name in space:
        tried = [base, *(applied(base, space, values) for values in alone(space, name))]
        keys = [stages.keys(config, dataset) for config in tried]
        first[name] = next((at for at in stages.planned(base) if len({k[at] for k in keys}) > 1), "")
    return first


def _ordered(space: Mapping[str, Dimension], first: Mapping[str, str], planned: list[str]) -> dict[str, Dimension]:
    """By stage, and conditions before what hangs on them."""
    out: dict[str, Dimension] = {}
    by_stage = sorted(space, key=lambda name: ["", *planned].index(first[name]))
    while len(out) < len(space):
        name = next(n for n in by_stage if n not in out and all(other in out for other in space[n].when))
        out[name] = space[name]
    return out
