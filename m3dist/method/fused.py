"""Members of stage 3 as one recommender: their scores, the weights of a fusion, and what fusions learn from.

Shapes: M members, U users, u of a block, I items, n validation pairs, h users of a half.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m3dist.config import Config
from m3dist.evaluation import ranking
from m3dist.evaluation.ranking import Mask, Seen, Users
from m3dist.method.fusions import FUSIONS
from m3dist.method.fusions.attention import confidence
from m3dist.method.fusions.base import Fusion, fuse
from m3dist.seeding import derive
from m3dist.training.context import Context

_MASKED = -1e30  # finite, so that a product with a weight is
_MOST = 2000  # users of the learning half at most: a fusion has a handful of numbers to learn


class Members:
    """Every member's scores, from a stage's tensors alone.

    low: the user to whom the first row of users' tables belongs, where they hold a part.
    """

    def __init__(self, tensors: dict[str, Tensor], low: int = 0):
        self.low, self.count = low, sum(name.endswith(".user") for name in tensors)
        self.user = [tensors[f"{m}.user"] for m in range(self.count)]
        self.item = [tensors[f"{m}.matrix"] for m in range(self.count)]
        self._products = [ranking.Product(user, item) for user, item in zip(self.user, self.item, strict=True)]

    def with_items(self, rows: Sequence[Tensor]) -> Members:
        """The same users with further items, behind those there are: rows of each member."""
        tables = {f"{m}.user": user for m, user in enumerate(self.user)}
        items = [torch.cat([item, more]) for item, more in zip(self.item, rows, strict=True)]
        return Members(tables | {f"{m}.matrix": item for m, item in enumerate(items)}, self.low)

    def of(self, users: Sequence[Tensor]) -> Members:
        """The same items with other users' rows, one table for each member."""
        tables = {f"{m}.user": user for m, user in enumerate(users)}
        return Members(tables | {f"{m}.matrix": item for m, item in enumerate(self.item)})

    def scores(self, user_u: Tensor) -> list[Tensor]:
        """Every member's, [u, I]; the next call overwrites them."""
        return [product(user_u - self.low if self.low else user_u) for product in self._products]


class Fused:
    """Members under a fusion, which has learned what it needs: a scorer. One member alone needs no fusion."""

    def __init__(self, members: Members, fusion: Fusion | None):
        self.members, self.fusion = members, fusion

    @staticmethod
    def of(members: Members, strategy: str, learned: dict[str, Tensor]) -> Fused:
        """learned: tensors that `Fusion.learn` of this strategy gave, among others."""
        return Fused(members, FUSIONS[strategy](members.count, learned) if members.count > 1 else None)

    def __call__(self, user_u: Tensor, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """Fused scores [u, I], which the next call overwrites, and weights [u, M]; no weights of a single member."""
        scores = self.members.scores(user_u)
        if self.fusion is None:
            return scores[0], None
        read = [mask(score_uI, _MASKED) for score_uI in scores] if self.fusion.reads_scores else scores
        weight_uM = self.fusion.weights(read)
        return fuse(weight_uM, scores), weight_uM


def scorer(tensors: dict[str, Tensor], config: Config) -> Fused:
    """A finished stage's members, ready to rank."""
    return Fused.of(Members(tensors), config.merge.fusion, tensors)


@dataclass
class Half:
    """Validation users of one half, for `fusions.Held`; user_h: their ids, ascending, on the host."""

    context: Context
    members: Members
    user_h: np.ndarray

    @property
    def models(self) -> int:
        return self.members.count

    @property
    def seed(self) -> int:
        return self.context.config.seed

    @functools.cached_property
    def relevant(self) -> Seen:
        """What these users hold out."""
        user, item = self.context.dataset.interactions("val")
        mine = np.isin(user, self.user_h)
        device = self.context.data.device
        return Seen.of((user[mine].copy(), item[mine].copy()), self.context.dataset.n_users, device)

    def metric(self, strategy: str, learned: dict[str, Tensor]) -> float:
        """The selecting metric of a strategy on these users."""
        on_device = {name: x.to(self.context.data.device) for name, x in learned.items()}
        fused = Fused.of(self.members, strategy, on_device)
        metrics, _ = self.context.evaluator.evaluate(fused, "val", relevant=self.relevant)
        return metrics[self.context.config.evaluation.metric]

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `fusions.Held`. Items drawn at random are drawn for all validation pairs, in their order."""
        data = self.context.data
        user, item = (torch.from_numpy(x.copy()).long() for x in self.context.dataset.interactions("val"))
        generator = torch.Generator().manual_seed(derive(self.seed, "validation"))
        negative = torch.randint(data.n_items, (len(user),), generator=generator)
        here = torch.from_numpy(np.isin(user.numpy(), self.user_h))
        user, item, negative = (x[here].to(data.device) for x in (user, item, negative))
        at_n = torch.searchsorted(torch.from_numpy(self.user_h).to(data.device), user)
        return at_n, self._scores(user, item), self._scores(user, negative)

    def _scores(self, user_n: Tensor, item_n: Tensor) -> Tensor:
        """Every member's score of pairs, [n, M]."""
        data = self.context.data
        mine = data.mine(user_n)
        at, items = user_n[mine] - self.members.low, item_n[mine]
        each = [(u[at] * v[items]).sum(1) for u, v in zip(self.members.user, self.members.item, strict=True)]
        return data.joined(torch.stack(each, dim=1))

    def confidence(self) -> Tensor:
        """See `fusions.Held`."""
        data, evaluator = self.context.data, self.context.evaluator
        here = self.user_h[data.mine(torch.from_numpy(self.user_h)).numpy()]
        found = []
        for some in Users.of(here, data.device).blocks(1024):
            mask = Mask(evaluator.seen("val"), some, data.n_items)
            scores = [confidence(mask(score_uI, _MASKED)) for score_uI in self.members.scores(some.there_u)]
            found.append(torch.cat(scores, dim=1))
        return data.joined(torch.cat(found) if found else torch.zeros(0, 3 * self.models, device=data.device))


def halves(context: Context, members: Members) -> tuple[Half, Half]:
    """(learning, judging) halves of the users who hold validation items out, the same for every strategy."""
    users = np.unique(context.dataset.interactions("val")[0]).astype(np.int64)
    shuffled = np.random.default_rng(derive(context.config.seed, "halves")).permutation(users)
    middle = (len(users) + 1) // 2
    learning, judging = shuffled[: min(middle, _MOST)], shuffled[middle:]
    return Half(context, members, np.sort(learning)), Half(context, members, np.sort(judging))


def learn(context: Context, members: Members, strategy: str) -> dict[str, Tensor]:
    """What a strategy learns of the learning half; nothing of a single member."""
    if members.count == 1:
        return {}
    learned = FUSIONS[strategy].learn(halves(context, members)[0])
    return {name: x.to(context.data.device) for name, x in learned.items()}


def judge(context: Context, members: Members, learned: dict[str, Tensor], strategy: str) -> dict[str, float]:
    """The selecting metric of a strategy and of equal weights on the users of whom it learned nothing."""
    judging = halves(context, members)[1]
    return {name: judging.metric(name, learned) for name in dict.fromkeys((strategy, "equal"))}
