"""A plain implementation in the style of published scripts, to measure against.

Every positive has negatives of its own, the whole catalogue is projected in every step, dense Adam walks whole
tables, and evaluation masks and ranks one user after another in Python.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainUltraGCN(nn.Module):
    def __init__(self, users: int, content_Iw: Tensor, dim: int, content_dim: int):
        super().__init__()
        self.user = nn.Embedding(users, dim + content_dim)
        self.item = nn.Embedding(len(content_Iw), dim)
        self.project = nn.Linear(content_Iw.shape[1], content_dim)
        self.content = content_Iw
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.01)

    def items(self) -> Tensor:
        return torch.cat([self.item.weight, self.project(self.content)], dim=1)

    def loss(
        self, user_b: Tensor, item_b: Tensor, negative_bn: Tensor, a_U: Tensor, c_I: Tensor, weight: float
    ) -> Tensor:
        """The weighted cross-entropies of UltraGCN with w1 = w3 = 1 and w2 = w4 = kappa = 1."""
        items = self.items()
        user = self.user(user_b)
        positive = (user * items[item_b]).sum(1)
        negative = torch.bmm(items[negative_bn], user.unsqueeze(2)).squeeze(2)
        positive_weight = 1 + a_U[user_b] * c_I[item_b]
        negative_weight = 1 + a_U[user_b][:, None] * c_I[negative_bn]
        first = F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive), positive_weight)
        second = F.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative), negative_weight)
        return first + weight * second


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
