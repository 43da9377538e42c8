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

from m3dist.config import ResolvedBackbone
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


class PlainBackbone(nn.Module):
    """The backbone on ids and projected content, a method a term of its loss."""

    def __init__(self, users: int, content_Iw: Tensor, config: ResolvedBackbone, weights: Weights):
        super().__init__()
        self.adds = config.content == "add"
        self.user = nn.Embedding(users, config.dim + config.content_columns)
        self.item = nn.Embedding(len(content_Iw), config.dim)
        self.project = nn.Linear(content_Iw.shape[1], config.content_columns or config.dim)
        self.content, self.config, self.weights = content_Iw, config, weights
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=config.init_std)

    def items(self) -> Tensor:
        """Rows of the whole catalogue."""
        content = self.project(self.content)
        return self.item.weight + content if self.adds else torch.cat([self.item.weight, content], dim=1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Rows of all users and items, whose products are the scores."""
        rows = self.user.weight.detach(), self.items().detach()
        return (unit(rows[0]), unit(rows[1])) if self.config.loss == "softmax" else rows

    def cross_entropies(self, users: Tensor, items: Tensor, user_b: Tensor, item_b: Tensor, negative_bn: Tensor):
        """The weighted binary cross-entropies of positives and negatives, each a mean (Mao et al. 2021, eq. 8, 10)."""
        config, a_U, c_I = self.config, self.weights.a_U, self.weights.c_I
        positive, negative = scores(users, items, item_b, negative_bn)
        positive_weight = config.w1 + config.kappa * config.w2 * a_U[user_b] * c_I[item_b]
        negative_weight = config.w3 + config.kappa * config.w4 * a_U[user_b][:, None] * c_I[negative_bn]
        first = F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive), positive_weight)
        second = F.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative), negative_weight)
        return first + config.negative_weight * second

    def neighbours(self, users: Tensor, items: Tensor, item_b: Tensor, columns_s: Tensor) -> Tensor:
        """-nu L_I, a mean over positives (eq. 15); columns_s: which of each item's neighbours enter."""
        config, weights = self.config, self.weights
        near, omega = (x.view(-1, weights.K)[item_b][:, columns_s] for x in (weights.neighbour, weights.omega))
        score_bs = (users[:, None] * items[near]).sum(2)
        scale = config.nu * config.neighbours / len(columns_s) / len(item_b)
        return -scale * (omega * F.logsigmoid(score_bs)).sum()

    def l2(self, users: Tensor, item_b: Tensor, negative_bn: Tensor) -> Tensor:
        """Of the rows of the samples, of negatives alone under the softmax."""
        config, (item, negative) = self.config, (self.item(item_b), self.item(negative_bn))
        if not self.adds:
            items = self.items()
            item, negative = items[item_b], items[negative_bn]
        total, d = torch.zeros((), device=users.device), config.dim
        for rows in (users, negative) if config.loss == "softmax" else (users, item, negative):
            square = rows.square().flatten(0, -2).mean(0)
            total = total + config.l2 * square[:d].sum() + config.content_l2 * square[d:].sum()
        return total + config.projection_l2 * self.project.weight.square().sum()

    def loss(self, user_b: Tensor, item_b: Tensor, negative_bn: Tensor, columns_s: Tensor) -> Tensor:
        """All of the backbone's loss."""
        items, users = self.items(), self.user(user_b)
        if self.config.loss == "softmax":
            total = softmax(*scores(unit(users), unit(items), item_b, negative_bn), self.config.tau)
        else:
            total = self.cross_entropies(users, items, user_b, item_b, negative_bn)
        if self.config.nu:
            total = total + self.neighbours(users, items, item_b, columns_s)
        return total + self.l2(users, item_b, negative_bn)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-8).rsqrt()


def scores(users: Tensor, items: Tensor, item_b: Tensor, negative_bn: Tensor) -> tuple[Tensor, Tensor]:
    """Products of users' rows with their positive's, [b], and their negatives', [b, n]."""
    return (users * items[item_b]).sum(1), torch.bmm(items[negative_bn], users.unsqueeze(2)).squeeze(2)


def softmax(positive_b: Tensor, negative_bn: Tensor, tau: float) -> Tensor:
    """The mean of -log of each positive's part of a softmax over it and its negatives."""
    every = torch.cat([positive_b.unsqueeze(1), negative_bn], dim=1) / tau
    return F.cross_entropy(every, torch.zeros(len(every), dtype=torch.long, device=every.device))


class PlainEnvironment(nn.Module):
    """One environment's model: a content projection of its own over frozen embeddings.

    content_Uc: what users' content scores by. ids: frozen rows of users and items whose products are added, under
    UltraGCN's loss.
    """

    def __init__(self, content_Uc: Tensor, ids: tuple[Tensor, Tensor] | None, psi_IW: Tensor, backbone: PlainBackbone):
        super().__init__()
        self.content, self.ids, self.psi = content_Uc, ids, psi_IW
        self.project = nn.Linear(psi_IW.shape[1], content_Uc.shape[1])
        self.cross_entropies, self.tau = backbone.cross_entropies, backbone.config.tau

    def loss(self, user_b: Tensor, item_b: Tensor, negative_bn: Tensor) -> Tensor:
        """Of the fit alone: without L2."""
        users, items = self.content[user_b], self.project(self.psi)
        if self.ids is not None:
            users, items = torch.cat([self.ids[0][user_b], users], dim=1), torch.cat([self.ids[1], items], dim=1)
            return self.cross_entropies(users, items, user_b, item_b, negative_bn)
        positive, negative = scores(users, items, item_b, negative_bn)
        return softmax(positive, negative.masked_fill(negative_bn == item_b[:, None], -torch.inf), self.tau)

    @torch.no_grad()
    def content_scores(self, user: Tensor, item: Tensor, batch: int) -> Tensor:
        """How well the content of every interaction's item suits its user, [n]; a batch at a time."""
        out = []
        for user_b, item_b in zip(user.split(batch), item.split(batch), strict=True):
            out.append((self.content[user_b] * self.project(self.psi)[item_b]).sum(1))
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
