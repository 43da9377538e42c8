"""Random search: point i of a seed is always the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from m3dist.search.dimensions import Values, draw
from m3dist.search.searchers.base import Sequence
from m3dist.seeding import numpy_rng


class Random(Sequence):
    """`reuse.siblings` points in a row share the values of the first stage that varies, each drawn as if alone."""

    def points(self) -> Iterator[Values]:
        plan = self.plan
        group = plan.search.reuse.siblings if plan.search.reuse.on and plan.shared else 1
        for index in itertools.count():
            rngs = {
                name: numpy_rng(plan.search.seed, "search", name, index // group if at == plan.shared else index)
                for name, at in plan.stage.items()
            }
            yield draw(plan.space, rngs)
