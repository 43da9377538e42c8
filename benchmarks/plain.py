"""A plain implementation in the style of published scripts, to measure against.

Each epoch shuffles the interactions, every positive has negatives of its own, the whole catalogue is projected in every
step, dense Adam walks whole tables, environments' models train one after another, and evaluation masks and ranks one
user after another in Python.

Shapes: U users, I items, w width of content, b batch, n negatives of each positive, s neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.config import Backbone
from m3dist.models.ultragcn import Weights


class Batch(NamedTuple):
    """Interactions, and negatives of each."""

    user_b: Tensor
    item_b: Tensor
    negative_bn: Tensor


def batches(user: Tensor, item: Tensor, items: int, size: int, negatives: int = 50) -> Iterator[Batch]:
    """Batches without end: each epoch shuffles the interactions, whose users and items are given."""
    while True:
        for index_b in torch.randperm(len(user), device=user.device).split(size):
            negative_bn = torch.randint(items, (len(index_b), negatives), device=user.device)
            yield Batch(user[index_b].long(), item[index_b].long(), negative_bn)


class PlainUltraGCN(nn.Module):
    """UltraGCN on ids and projected content; a method a term of its loss."""

    def __init__(self, users: int, content_Iw: Tensor, config: Backbone, weights: Weights):
        super().__init__()
        self.user = nn.Embedding(users, config.dim + config.content_dim)
        self.item = nn.Embedding(len(content_Iw), config.dim)
        self.project = nn.Linear(content_Iw.shape[1], config.content_dim)
        self.content, self.config, self.weights = content_Iw, config, weights
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=config.init_std)

    def items(self) -> Tensor:
        """Rows of the whole catalogue."""
        return torch.cat([self.item.weight, self.project(self.content)], dim=1)

    def cross_entropies(self, users: Tensor, items: Tensor, user_b: Tensor, item_b: Tensor, negative_bn: Tensor):
        """The weighted binary cross-entropies of positives and negatives, each a mean (Mao et al. 2021, eq. 8, 10)."""
        config, a_U, c_I = self.config, self.weights.a_U, self.weights.c_I
        positive = (users * items[item_b]).sum(1)
        negative = torch.bmm(items[negative_bn], users.unsqueeze(2)).squeeze(2)
        positive_weight = config.w1 + config.kappa * config.w2 * a_U[user_b] * c_I[item_b]
        negative_weight = config.w3 + config.kappa * config.w4 * a_U[user_b][:, None] * c_I[negative_bn]
        first = F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive), positive_weight)
        second = F.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative), negative_weight)
        return first + config.negative_weight * second

    def loss(self, user_b: Tensor, item_b: Tensor, negative_bn: Tensor, columns_s: Tensor) -> Tensor:
        """All of the backbone's loss; columns_s: which of each item's neighbours enter."""
        config, weights = self.config, self.weights
        items, users = self.items(), self.user(user_b)
        total = self.cross_entropies(users, items, user_b, item_b, negative_bn)
        near, omega = (x.view(-1, weights.K)[item_b][:, columns_s] for x in (weights.neighbour, weights.omega))
        score_bs = (users[:, None] * items[near]).sum(2)
        scale = config.nu * config.neighbours / len(columns_s) / len(user_b)
        total = total - scale * (omega * F.logsigmoid(score_bs)).sum()
        d = config.dim
        for rows in (users, items[item_b], items[negative_bn]):
            square = rows.square().flatten(0, -2).mean(0)
            total = total + config.l2 * square[:d].sum() + config.content_l2 * square[d:].sum()
        return total + config.projection_l2 * self.project.weight.square().sum()


class PlainEnvironment(nn.Module):
    """One environment's model: a content projection of its own over frozen embeddings."""

    def __init__(self, user_Ud: Tensor, item_Id: Tensor, psi_IW: Tensor, backbone: PlainUltraGCN):
        super().__init__()
        self.user, self.item, self.psi = user_Ud, item_Id, psi_IW
        self.project = nn.Linear(psi_IW.shape[1], user_Ud.shape[1] - item_Id.shape[1])
        self.cross_entropies = backbone.cross_entropies

    def items(self) -> Tensor:
        return torch.cat([self.item, self.project(self.psi)], dim=1)

    def loss(self, user_b: Tensor, item_b: Tensor, negative_bn: Tensor) -> Tensor:
        return self.cross_entropies(self.user[user_b], self.items(), user_b, item_b, negative_bn)

    @torch.no_grad()
    def content_scores(self, user: Tensor, item: Tensor, batch: int) -> Tensor:
        """How well the content of every interaction's item suits its user, [n]; a batch at a time."""
        d, out = self.item.shape[1], []
        for user_b, item_b in zip(user.split(batch), item.split(batch), strict=True):
            out.append((self.user[user_b][:, d:] * self.items()[item_b][:, d:]).sum(1))
        return torch.cat(out)


def ndcg(score_UI: np.ndarray, seen: list[set[int]], held: list[set[int]], k: int) -> float:
    """Mean NDCG@k by a loop over users."""
    total, users = 0.0, 0
    for user, row in enumerate(score_UI):
        if not held[user]:
            continue
        row = row.copy()
        row[list(seen[user])] = -np.inf
        best = np.argsort(-row, kind="stable")[:k]
        gain = sum(1 / np.log2(at + 2) for at, item in enumerate(best) if item in held[user])
        total += gain / sum(1 / np.log2(at + 2) for at in range(min(k, len(held[user]))))
        users += 1
    return total / users
