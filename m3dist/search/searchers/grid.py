"""Grid search: every point of a finite space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from m3dist.search.dimensions import Dimension, Values, grid
from m3dist.search.searchers.base import Sequence


class Grid(Sequence):
    """The values of the first stage change last, so that points in a row share their stages."""

    @classmethod
    def check(cls, space: Mapping[str, Dimension]) -> None:
        for name, dimension in space.items():
            if dimension.finite is None:
                raise ValueError(f"space.{name}: searcher=grid needs grid or choice")

    def points(self) -> Iterator[Values]:
        return grid(self.plan.space)
