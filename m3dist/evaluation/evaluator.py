"""Metrics of a scorer on a data set. Splits are read once, and the items that a user has seen are kept per split.

Shapes: U users, I items, C of them without training interactions.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from m3dist.config import Evaluation
from m3dist.data.dataset import SPLITS, Dataset
from m3dist.distributed.engine import Engine
from m3dist.evaluation import metrics
from m3dist.evaluation.metrics import Judged
from m3dist.evaluation.ranking import Ranking, Scorer, Seen, block_size


class Evaluator:
    """Ranks on one worker's device, for the users whose interactions the worker holds."""

    def __init__(self, dataset: Dataset, settings: Evaluation, engine: Engine | None = None):
        self.dataset, self.settings = dataset, settings
        self.engine = engine or Engine()
        self.users = dataset.part(self.engine.rank, self.engine.world).users
        self._items: dict[str, Seen] = {}

    def items(self, split: str) -> Seen:
        """The items in a split of every user of this worker."""
        if split not in self._items:
            (low, high), pairs = self.users, self.dataset.of_users(split, self.users)
            self._items[split] = Seen.of(pairs, high - low, self.engine.device, low)
        return self._items[split]

    def seen(self, before: str | None) -> list[Seen]:
        """Users' items in the splits before one, which a ranking for it must leave out; None: in all splits."""
        return [self.items(split) for split in SPLITS[: len(SPLITS) if before is None else SPLITS.index(before)]]

    @functools.cached_property
    def cold_C(self) -> Tensor:
        """Ids of the items without training interactions."""
        return torch.from_numpy(np.flatnonzero(self.dataset.degrees[1] == 0)).to(self.engine.device)

    def ranking(self, score: Scorer, k: int, before: str | None) -> Ranking:
        """Lists of length k without what users have in the splits before one, or in any."""
        block = block_size(self.settings.block, self.dataset.n_items, self.engine.device)
        return Ranking(score, self.seen(before), self.dataset.n_items, k, block)

    def judged(self, split: str, relevant: Seen | None = None) -> Judged:
        """What lists are held against: a split's items, or other ones, and those among them that are cold."""
        relevant, cold = relevant or self.items(split), None
        if len(self.cold_C):
            found = relevant.only(self.dataset.degrees[1] == 0)
            cold = found if len(found.item) else None
        return Judged(relevant, self.settings.k, cold, self.cold_C)

    def evaluate(
        self, score: Scorer, split: str, keep: bool = False, relevant: Seen | None = None
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics on `val` (training items masked) or `test` (validation items masked too), and a table.

        `/cold`: of items without training interactions alone, over the users who hold one out; `/cold-only`: ranked
        among themselves. Each worker ranks its own users; all get the same metrics, and with `keep` the table of their
        own users. relevant: other held-out items than the split's.
        """
        engine, mine, judged = self.engine, np.arange(*self.users), self.judged(split, relevant)
        with torch.no_grad():
            total, table = metrics.evaluate(self.ranking(score, max(self.settings.k), split), mine, judged, keep)
            return total.means(engine, self.cold_C if len(self.cold_C) else None), table
