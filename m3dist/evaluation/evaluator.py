"""Metrics of a scorer on a data set. Splits are read once, and the items that a user has seen are kept per split.

Shapes: U users, I items.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from m3dist.config import Evaluation
from m3dist.data.dataset import SPLITS, Dataset
from m3dist.distributed.engine import Engine
from m3dist.evaluation import ranking
from m3dist.evaluation.ranking import Judged, Scorer, Seen


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
    def cold_I(self) -> Tensor:
        """bool [I]: items without training interactions."""
        return torch.from_numpy(self.dataset.degrees[1] == 0).to(self.engine.device)

    def evaluate(
        self, score: Scorer, split: str, keep: bool = False, relevant: Seen | None = None
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics on `val` (training items masked) or `test` (validation items masked too), and a table.

        `/cold`: of items without training interactions alone, over the users who hold one out. Workers share out the
        users, by id modulo their number or, where tables are sharded, by who owns their rows; all get the same
        metrics, and with `keep` the table of their own users. relevant: other held-out items than the split's.
        """
        engine, n = self.engine, self.dataset.n_users
        everyone = torch.arange(n, device=engine.device)
        if self.sharded:
            mine = everyone[slice(*engine.share(n))]
        else:
            mine = everyone[engine.rank :: engine.world]
        judged = Judged(relevant or self.items(split), self.dataset.n_items, self.settings.k, self.cold_I)
        with torch.no_grad():
            found = ranking.Ranking(score, self.seen(split), max(self.settings.k), self.settings.block)
            total, table = ranking.evaluate(found, mine, judged, keep)
        total.sums = engine.totals(total.sums)
        counts = engine.totals({"users": total.users, "cold": total.cold_users})
        total.users, total.cold_users = int(counts["users"]), int(counts["cold"])
        engine.add_up(total.listed.values())
        return total.means(), table
