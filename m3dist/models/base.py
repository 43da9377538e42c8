"""What a recommender is to the rest of m3dist: a module with a loss and the tensors that its scores need.

A new one is one file with a subclass of `Recommender` and one line in `method/registry.py`, or a class of another
package, known by the decorator or the entry point that are named there. Its constructor takes `Given` and its
`Settings`, a frozen dataclass whose further fields `baseline.options` sets. It knows no ranks: a loss is a sum over the
worker's share of the batch divided by the size of the global batch.

Shapes: U users, I items, n training pairs, b positives of this worker, N shared or n own negatives, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from m3dist.losses import ranking
from m3dist.models.sparse import Graph


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global step of `size` samples: users and items [b], and negatives, [N] that all share or
    [b, n] of their own. hashes: int64 numbers of the step for whatever else a recommender draws."""

    user_b: Tensor
    item_b: Tensor
    negative: Tensor
    size: int
    hashes_X: Tensor

    @property
    def part(self) -> float:
        """This worker's share of the global batch; shares add up to 1."""
        return len(self.user_b) / self.size


@dataclass(frozen=True)
class Given:
    """What every recommender is built from: features [I, d_m] of each modality, and training pairs [n]."""

    n_users: int
    n_items: int
    features: list[Tensor]
    user: Tensor
    item: Tensor

    @property
    def width(self) -> int:
        """Of the concatenated features."""
        return sum(x.shape[1] for x in self.features)

    def graph(self) -> Graph:
        """Training pairs both ways between U + I nodes, users first."""
        user, item = self.user.long(), self.item.long() + self.n_users
        n = self.n_users + self.n_items
        return Graph(torch.cat([user, item]), torch.cat([item, user]), n, n)

    def to_users(self) -> Graph:
        """Edges item -> user."""
        return Graph(self.user.long(), self.item.long(), self.n_users, self.n_items)


@dataclass(frozen=True)
class Settings:
    """What every recommender can be told: the width of its vectors, and the weight of L2 on the rows of a step."""

    dim: int = 64
    l2: float = 1e-3


class Recommender(nn.Module):
    """Base: BPR on inner products of `vectors()`, with L2 on the step's rows of `ego()`.

    batches: does a step draw training pairs, or users (whose whole history is then one sample).
    """

    batches: ClassVar[Literal["pairs", "users"]] = "pairs"
    Options: ClassVar[type[Settings]] = Settings

    feature: Tensor  # all modalities side by side, [I, w]

    def __init__(self, given: Given, settings: Settings):
        super().__init__()
        self.n_users, self.n_items, self.dim, self.l2 = given.n_users, given.n_items, settings.dim, settings.l2
        feature = torch.cat(given.features, dim=1) if given.features else torch.zeros(given.n_items, 0)
        self.register_buffer("feature", feature, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of `loss`: DDP and ZeRO synchronise gradients of what was computed in forward."""
        return self.loss(batch)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Whose inner products are the scores: [U, d] and [I, d]."""
        raise NotImplementedError

    def ego(self) -> tuple[Tensor, Tensor | None]:
        """Tables under L2, [U, d] and, where items have one, [I, d]."""
        raise NotImplementedError

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the batch's users [b, d], items [b, d] and negatives [N, d] or [b, n, d]."""
        user_Ud, item_Id = self.vectors()
        return user_Ud[batch.user_b], item_Id[batch.item_b], item_Id[batch.negative]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """This worker's share of every term; `loss` is their sum."""
        out = {**self.ranked(batch), **self.extra(batch)}
        user, item = self.ego()
        square = user[batch.user_b].square().sum() / batch.size
        if item is not None:
            negative = item[batch.negative].square().sum() / batch.negative.shape[-1]
            own = batch.negative.ndim == 2
            square = square + item[batch.item_b].square().sum() / batch.size
            square = square + negative * (1 / batch.size if own else batch.part)
        out["l2"] = self.l2 * square
        return out | {"loss": torch.stack(list(out.values())).sum()}

    def ranked(self, batch: Batch) -> dict[str, Tensor]:
        """The term by which positives rank above negatives."""
        return {"bpr": bpr(batch, *self.rows(batch))}

    def extra(self, batch: Batch) -> dict[str, Tensor]:
        """Further terms of the loss."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """All that `score` reads."""
        user, item = self.vectors()
        return {"user": user, "item": item}

    @staticmethod
    def score(tensors: dict[str, Tensor], user_u: Tensor) -> Tensor:
        """Scores of the whole catalogue, a fresh [u, I]."""
        return tensors["user"][user_u] @ tensors["item"].T


class GraphRecommender(Recommender):
    """A recommender that propagates along the training interactions, from id vectors and the items' content.

    content: whether an item's vector starts as v_i + W f_i instead of v_i.
    """

    def __init__(self, given: Given, settings: Settings, content: bool):
        super().__init__(given, settings)
        dim = settings.dim
        self.user, self.item = xavier(given.n_users, dim), xavier(given.n_items, dim)
        self.project = nn.Linear(given.width, dim) if content and given.width else None
        self.graph = given.graph()

    def nodes(self) -> Tensor:
        """Users, then items, before propagation, [U + I, d]."""
        return torch.cat([self.user, self.item if self.project is None else self.item + self.project(self.feature)])

    def split(self, node_nd: Tensor) -> tuple[Tensor, Tensor]:
        return node_nd[: self.n_users], node_nd[self.n_users :]

    def ego(self) -> tuple[Tensor, Tensor | None]:
        return self.user, self.item


def bpr(batch: Batch, user_bd: Tensor, item_bd: Tensor, negative: Tensor) -> Tensor:
    """Mean over positives and their negatives of -log sigmoid(s_ui - s_uj) (Rendle et al., UAI 2009).

    With shared negatives every user meets the same N: the expectation of one uniform negative per positive, with
    less noise.
    """
    return ranking.bpr(*positive_and_negative(user_bd, item_bd, negative)) / batch.size


def positive_and_negative(user_bd: Tensor, item_bd: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of positives [b] and of their negatives, [b, N] of shared ones [N, d] or [b, n] of own ones [b, n, d]."""
    if negative.ndim == 2:
        score = user_bd @ negative.T
    else:
        score = torch.bmm(negative, user_bd.unsqueeze(2)).squeeze(2)
    return (user_bd * item_bd).sum(1), score


def distinct_items(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct items of a step [R], and where its positives and negatives stand among them."""
    ids, at = torch.unique(torch.cat([batch.item_b, batch.negative.flatten()]), return_inverse=True)
    b = len(batch.item_b)
    return ids, at[:b], at[b:].view(batch.negative.shape)


def xavier(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(*shape)))


def need_features(given: Given, name: str) -> None:
    if not given.features:
        raise ValueError(f"{name} needs item features and this data set has none; use model=ultragcn or model=ngcf")
