"""VBPR (He and McAuley, AAAI 2016): matrix factorisation beside a projection of the item's features.

Eq. 4: x_ui = gamma_u . gamma_i + theta_u . (E f_i) + beta_i + beta' . f_i. The global and the user's bias are left
out: they cancel in BPR and in a user's ranking. f_i holds all modalities, concatenated, where the paper has images.
Without features it is BPR-MF.

Shapes: U users, I items, R distinct items of a step, d width, w feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m3dist.data.sampling import Batch
from m3dist.models.base import Given, Recommender, Settings, distinct_items, xavier


class VBPR(Recommender):
    def __init__(self, given: Given, settings: Settings):
        super().__init__(given, settings)
        dim = settings.dim
        wide = given.width > 0
        self.user = xavier(given.n_users, 2 * dim if wide else dim)  # [gamma_u, theta_u]
        self.item = xavier(given.n_items, dim)
        self.bias = nn.Parameter(torch.zeros(given.n_items))
        self.project = nn.Linear(given.width, dim + 1, bias=False) if wide else None  # E and beta'

    def users(self, ids: Tensor | None = None) -> Tensor:
        """[gamma_u, 1, theta_u]."""
        user = self.user if ids is None else self.user[ids]
        return torch.cat([user[:, : self.dim], user.new_ones(len(user), 1), user[:, self.dim :]], dim=1)

    def items(self, ids: Tensor | None = None) -> Tensor:
        """[gamma_i, beta_i + beta' . f_i, E f_i]."""
        tables: tuple[Tensor, ...] = (self.item, self.bias, self.feature)
        item, bias, feature = tables if ids is None else (x[ids] for x in tables)
        if self.project is None:
            return torch.cat([item, bias[:, None]], dim=1)
        seen = self.project(feature)
        return torch.cat([item, bias[:, None] + seen[:, :1], seen[:, 1:]], dim=1)

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.users(), self.items()

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        ids, at_b, at_negative = distinct_items(batch)
        item = self.items(ids)
        return self.users(batch.user_b), item[at_b], item[at_negative]

    def ego(self) -> tuple[Tensor, Tensor | None]:
        return self.user, self.item
