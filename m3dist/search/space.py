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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from m3dist import config as configs
from m3dist import pipeline
from m3dist.config import Config, ConfigError, Section
from m3dist.data.dataset import Dataset

Values = dict[str, Any]
_KINDS = ("grid", "choice", "uniform", "log_uniform", "randint")
_FIXED = ("data", "out", "artifacts", "seed", "stages", "model", "evaluation", "synthetic", "checkpoint", "workers")


class Dimension(Section):
    """One searched value: exactly one of grid, choice, uniform, log_uniform and randint."""

    grid: list[Any] | None = None  # all of them when the searcher is `grid`, one at random otherwise
    choice: list[Any] | None = None  # the same
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = None
    randint: tuple[int, int] | None = None  # both ends included
    keys: tuple[str, ...] = ()  # config keys that take the value; default: the dimension's own name
    when: dict[str, Any] = Field(default={})  # used only where these dimensions have this value, or one of these

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(_KINDS)}, got {', '.join(given) or 'none'}")
        if self.finite is not None and not self.finite:
            raise ValueError(f"{given[0]}: expected at least one value")
        low_high = self.uniform or self.log_uniform or self.randint
        if low_high and low_high[0] >= low_high[1]:
            raise ValueError(f"{given[0]}: expected [low, high] with low < high, got {list(low_high)}")
        return self

    @property
    def finite(self) -> list[Any] | None:
        return self.grid if self.grid is not None else self.choice

    def ends(self) -> list[Any]:
        """All values of a finite dimension, or the two ends."""
        if self.finite is not None:
            return self.finite
        ends = self.uniform or self.log_uniform or self.randint
        assert ends is not None
        return list(ends)

    def holds(self, value: Any) -> bool:
        if self.finite is not None:
            return value in self.finite
        low, high = self.ends()
        whole = self.randint is None or isinstance(value, int)
        return isinstance(value, int | float) and not isinstance(value, bool) and whole and low <= value <= high

    def draw(self, rng: np.random.Generator) -> Any:
        if self.finite is not None:
            return self.finite[int(rng.integers(len(self.finite)))]
        if self.randint is not None:
            return int(rng.integers(self.randint[0], self.randint[1] + 1))
        if self.uniform is not None:
            return float(rng.uniform(*self.uniform))
        assert self.log_uniform is not None
        low, high = map(math.log, self.log_uniform)
        return math.exp(rng.uniform(low, high))


class Budget(Section):
    """The search ends at whichever is reached first; running trials then stop at their next epoch."""

    trials: PositiveInt | None = None
    epochs: PositiveInt | None = None  # trained by all trials together; a round of stage 2 counts its passes
    minutes: PositiveFloat | None = None  # of wall-clock time, over all sittings


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
    searcher: Literal["random", "grid", "optuna"] = "random"
    points: tuple[dict[str, Any], ...] = ()  # tried before what the searcher proposes: values of the space
    startup: NonNegativeInt = 10  # random proposals before optuna's model is asked
    reuse: Reuse = Reuse()
    concurrency: PositiveInt | Literal["auto"] = "auto"  # trials at once; auto: what cores, GPUs and memory hold
    retries: NonNegativeInt = 1  # of a trial whose process died
    final_seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)  # the chosen config is trained and tested with each
    seed: NonNegativeInt = 0  # of the proposals

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Search:
        if self.budget.trials is self.budget.epochs is self.budget.minutes is None:
            raise ValueError("budget: expected at least one of trials, epochs and minutes")
        for name, dimension in self.space.items():
            for other in dimension.when:
                if other not in self.space:
                    raise ValueError(f"space.{name}.when: {other} is not in the space")
            if self.searcher == "grid" and dimension.finite is None:
                raise ValueError(f"space.{name}: searcher=grid needs grid or choice")
        if (loop := self._cycle()) is not None:
            raise ValueError(f"space.{loop}.when: depends on itself")
        for at, point in enumerate(self.points):
            self._check(point, f"points[{at}]")
        return self

    def _check(self, point: Values, where: str) -> None:
        """Raises ValueError unless a point has a value of each dimension that is used at it, and no others."""
        for name, value in point.items():
            if name not in self.space:
                raise ValueError(f"{where}.{name}: is not in the space")
            if not active(self.space[name], point):
                raise ValueError(f"{where}.{name}: is not used there (space.{name}.when)")
            if not self.space[name].holds(value):
                raise ValueError(f"{where}.{name}: {value!r} is not in space.{name}")
        for name, dimension in self.space.items():
            if name not in point and active(dimension, point):
                raise ValueError(f"{where}: expected a value of {name}")

    def _cycle(self) -> str | None:
        left = dict(self.space)
        while left:
            free = [name for name, d in left.items() if not any(other in left for other in d.when)]
            if not free:
                return next(iter(left))
            for name in free:
                del left[name]
        return None


def active(dimension: Dimension, values: Values) -> bool:
    """Whether a dimension has a value beside these."""
    for other, wanted in dimension.when.items():
        if other not in values or values[other] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


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
        sizes = []
        for d in self.space.values():
            ends = d.ends()
            sizes.append(len(ends) if d.finite is not None else ends[1] - ends[0] + 1 if d.randint else math.inf)
        return math.prod(sizes)

    def config(self, values: Values) -> Config:
        """Raises ConfigError when the values do not fit the base."""
        return applied(self.base, self.space, values)

    def keys(self, values: Values) -> dict[str, str]:
        """The artifact key of every stage."""
        keys = pipeline.keys(self.config(values), self.dataset)
        return {stage: keys[stage] for stage in self.stages}

    @property
    def stages(self) -> list[str]:
        return pipeline.planned(self.base, test=False)

    @property
    def shared(self) -> str:
        """The first stage that differs between points; empty where no later one does and siblings would be equal."""
        varied = [stage for stage in self.stages if stage in self.stage.values()]
        return varied[0] if len(varied) > 1 else ""

    def extremes(self) -> list[Config]:
        """The base and every dimension's values, one at a time."""
        return [self.base, *(self.config(values) for name in self.space for values in _alone(self.space, name))]

    def identity(self) -> str:
        """What makes trials of two sittings the same search; budget, concurrency and final seeds may change."""
        kept = self.search.model_dump(exclude={"out", "base", "budget", "concurrency", "retries", "final_seeds"})
        base = self.base.model_dump(exclude={"out", "artifacts", "data", "checkpoint"})
        return configs.digest([kept, base, self.dataset.fingerprint])


def applied(base: Config, space: Mapping[str, Dimension], values: Values) -> Config:
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


def _alone(space: Mapping[str, Dimension], name: str) -> Iterator[Values]:
    """The values of one dimension with what its conditions ask for, and nothing else."""
    given: Values = {}
    open_ = [name]
    while open_:
        for other, wanted in space[open_.pop()].when.items():
            given[other] = wanted[0] if isinstance(wanted, list) else wanted
            open_.append(other)
    for value in space[name].ends():
        yield {**given, name: value}


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Plan:
    """Read a search file as `read` does, and check it against its base config and data."""
    search, base = read(path, overrides)
    if not search.out:
        search = search.model_copy(update={"out": f"runs/search-{Path(path).stem}"})
    search = search.model_copy(update={"out": str(Path(search.out).absolute())})
    return checked(search, base, str(path))


def read(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[Search, Config]:
    """A search file and its base config with `key=value` overrides; opens no data.

    An override of a key of the search file changes the search; any other key, or base.KEY, changes the base config.
    Raises ConfigError listing all problems.
    """
    raw, base_overrides = _read(Path(path), overrides)
    problems: list[str] = []
    search = base = None
    try:
        search = configs.validate(raw, str(path), Search)
    except ConfigError as error:
        problems += str(error).splitlines()
    try:
        base = _base(Path(path), raw.get("base", {}), raw.get("metric"), base_overrides)
    except ConfigError as error:
        problems += str(error).splitlines()
    if search is None or base is None:
        raise ConfigError("\n".join(problems))
    for name, value in (("out", search.out), ("artifacts", base.artifacts or "")):
        if "://" in value:
            raise ConfigError(f"{name}={value}: trials meet in a folder that all nodes mount; a URI cannot be locked")
    return search, base


def checked(search: Search, base: Config, source: str = "search") -> Plan:
    """A plan whose every value fits the base. Raises ConfigError listing those that do not."""
    problems = []
    if pipeline.final_stage(base) not in pipeline.planned(base, test=False):
        problems.append("base.stages: a search compares trials after their last stage, which is missing")
    for name, dimension in search.space.items():
        for key in dimension.keys or (name,):
            if key.split(".")[0] in _FIXED:
                problems.append(f"space.{name}: {key} must be the same in all trials; set it in base")
    if not problems:
        for name in search.space:
            seen = set()
            for values in _alone(search.space, name):
                try:
                    applied(base, search.space, values)
                except ConfigError as error:
                    seen |= {line.strip() for line in str(error).splitlines()[1:]} or {str(error)}
            problems += [f"space.{name}: {line}" for line in sorted(seen)]
    if problems:
        raise ConfigError(f"{source}:\n" + "\n".join(f"  {line}" for line in problems))
    if base.data == "synthetic":  # once, not in every trial's folder
        data = pipeline.open_data(base.model_copy(update={"out": search.out})).root
        base = base.model_copy(update={"data": str(data)})
    dataset = pipeline.open_data(base)
    store = base.artifacts or str(Path(search.out) / "artifacts")
    where = {"data": base.data if "://" in base.data else str(Path(base.data).absolute())}
    base = base.model_copy(update={**where, "out": search.out, "artifacts": str(Path(store).absolute())})
    stage, stages = {}, pipeline.planned(base, test=False)
    for name in search.space:
        tried = [base, *(applied(base, search.space, values) for values in _alone(search.space, name))]
        keys = [pipeline.keys(config, dataset) for config in tried]
        changed = [at for at in stages if len({k[at] for k in keys}) > 1]
        stage[name] = changed[0] if changed else ""
    if idle := [name for name, at in stage.items() if not at and len(search.space[name].ends()) > 1]:
        raise ConfigError(f"{source}: {', '.join(idle)}: changes nothing that is trained")
    return Plan(search, base, dataset, _ordered(search.space, stage, stages), stage)


def _ordered(space: Mapping[str, Dimension], stage: Mapping[str, str], stages: list[str]) -> dict[str, Dimension]:
    """By stage, and conditions before what hangs on them."""
    out: dict[str, Dimension] = {}
    by_stage = sorted(space, key=lambda name: ["", *stages].index(stage[name]))
    while len(out) < len(space):
        name = next(n for n in by_stage if n not in out and all(other in out for other in space[n].when))
        out[name] = space[name]
    return out


def grid(space: Mapping[str, Dimension]) -> Iterator[Values]:
    """Every point of a finite space; dimensions that come first change last."""
    names = list(space)

    def below(at: int, values: Values) -> Iterator[Values]:
        if at == len(names):
            yield values
        elif not active(space[names[at]], values):
            yield from below(at + 1, values)
        else:
            for value in space[names[at]].ends():
                yield from below(at + 1, {**values, names[at]: value})

    return below(0, {})


def _read(path: Path, overrides: list[str] | tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """The search file's plain values with its overrides, and the overrides of the base."""
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
    return configs.read(path, mine), base


def _base(path: Path, base: Any, metric: Any, overrides: list[str]) -> Config:
    if metric is not None:
        overrides = [*overrides, f"evaluation.metric={metric}"]
    if isinstance(base, str):
        beside = path.parent / base
        return configs.load(beside if beside.exists() else base, overrides)
    if not isinstance(base, dict):
        return configs.load(None, overrides)  # the search file's own problem says what is wrong
    name = f"{path}: base"
    return configs.validate(configs.read(base, overrides, name), name)


def draw(space: Mapping[str, Dimension], rngs: Mapping[str, np.random.Generator]) -> Values:
    """A random point; every dimension has a generator of its own."""
    values: Values = {}
    for name, dimension in space.items():
        if active(dimension, values):
            values[name] = dimension.draw(rngs[name])
    return values
