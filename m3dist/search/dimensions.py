"""The values that a search varies, one dimension each, and points of the space that they span."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pydantic
from pydantic import Field, PositiveFloat

from m3dist.section import Section

Values = dict[str, Any]  # a point: the value of each dimension that is used at it
_KINDS = ("grid", "choice", "uniform", "log_uniform", "randint")


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
        """The values of a dimension that has finitely many."""
        return self.grid if self.grid is not None else self.choice

    @property
    def size(self) -> float:
        """How many values it has; inf where it is continuous."""
        if self.finite is not None:
            return len(self.finite)
        return self.randint[1] - self.randint[0] + 1 if self.randint is not None else math.inf

    def ends(self) -> list[Any]:
        """All values of a finite dimension, or the two ends."""
        if self.finite is not None:
            return self.finite
        ends = self.uniform or self.log_uniform or self.randint
        assert ends is not None
        return list(ends)

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the dimension's."""
        if self.finite is not None:
            return value in self.finite
        low, high = self.ends()
        whole = self.randint is None or isinstance(value, int)
        return isinstance(value, int | float) and not isinstance(value, bool) and whole and low <= value <= high

    def draw(self, rng: np.random.Generator) -> Any:
        """A value at random: uniform over the choices or the range, log-uniform where it says so."""
        if self.finite is not None:
            return self.finite[int(rng.integers(len(self.finite)))]
        if self.randint is not None:
            return int(rng.integers(self.randint[0], self.randint[1] + 1))
        if self.uniform is not None:
            return float(rng.uniform(*self.uniform))
        assert self.log_uniform is not None
        low, high = map(math.log, self.log_uniform)
        return math.exp(rng.uniform(low, high))


def active(dimension: Dimension, values: Values) -> bool:
    """Whether a dimension is used beside these values of others."""
    for other, wanted in dimension.when.items():
        if other not in values or values[other] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def draw(space: Mapping[str, Dimension], rngs: Mapping[str, np.random.Generator]) -> Values:
    """A random point; every dimension has a generator of its own."""
    values: Values = {}
    for name, dimension in space.items():
        if active(dimension, values):
            values[name] = dimension.draw(rngs[name])
    return values


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


def alone(space: Mapping[str, Dimension], name: str) -> Iterator[Values]:
    """Every end of one dimension, with the values that its conditions ask for and no others."""
    given: Values = {}
    open_ = [name]
    while open_:
        for other, wanted in space[open_.pop()].when.items():
            given[other] = wanted[0] if isinstance(wanted, list) else wanted
            open_.append(other)
    for value in space[name].ends():
        yield {**given, name: value}


def check_conditions(space: Mapping[str, Dimension]) -> None:
    """Raises ValueError where a condition names an unknown dimension or dimensions hang on each other in a circle."""
    for name, dimension in space.items():
        for other in dimension.when:
            if other not in space:
                raise ValueError(f"space.{name}.when: {other} is not in the space")
    try:
        graphlib.TopologicalSorter({name: dimension.when for name, dimension in space.items()}).prepare()
    except graphlib.CycleError as error:
        raise ValueError(f"space.{error.args[1][0]}.when: depends on itself") from None


def check_point(space: Mapping[str, Dimension], point: Values, where: str) -> None:
    """Raises ValueError unless a point has a value of each dimension that is used at it, and no others."""
    for name, value in point.items():
        if name not in space:
            raise ValueError(f"{where}.{name}: is not in the space")
        if not active(space[name], point):
            raise ValueError(f"{where}.{name}: is not used there (space.{name}.when)")
        if not space[name].holds(value):
            raise ValueError(f"{where}.{name}: {value!r} is not in space.{name}")
    for name, dimension in space.items():
        if name not in point and active(dimension, point):
            raise ValueError(f"{where}: expected a value of {name}")
