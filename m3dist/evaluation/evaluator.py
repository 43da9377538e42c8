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
    """Ranks on one worker's device. sharded: each worker ranks the users whose rows it holds."""

    def __init__(self, dataset: Dataset, settings: Evaluation, engine: Engine | None = None, sharded: bool = False):
        self.dataset, self.settings, self.sharded = dataset, settings, sharded
        self.engine = engine or Engine()
        self._items: dict[str, Seen] = {}

    def items(self, split: str) -> Seen:
        """Every user's items in a split."""
        if split not in self._items:
            pairs = self.dataset.interactions(split)
            self._items[split] = Seen.of(pairs, self.dataset.n_users, self.engine.device)
        return self._items[split]

    def seen(self, before: str | None) -> list[Seen]:
        """Every user's items in the splits before one, which a ranking for it must leave out; None: in all splits."""
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
        among themselves. Workers share out the users, by id modulo their number or, where tables are sharded, by who
        owns their rows; all get the same metrics, and with `keep` the table of their own users. relevant: other
        held-out items than the split's.
        """
        engine, everyone = self.engine, np.arange(self.dataset.n_users)
        mine = everyone[slice(*engine.share(len(everyone)))] if self.sharded else everyone[engine.rank :: engine.world]
        judged = self.judged(split, relevant)
        with torch.no_grad():
            total, table = metrics.evaluate(self.ranking(score, max(self.settings.k), split), mine, judged, keep)
            return total.means(engine, self.cold_C if len(self.cold_C) else None), table
