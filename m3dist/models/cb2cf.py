"""CB2CF (Barkan et al., RecSys 2019): a network from an item's content to its collaborative vector.

Collaborative vectors u, v are learned from interactions (BPR matrix factorisation), and f is fitted to them by least
squares, mean_i ||v_i - f(x_i)||^2; score = u . f(x_i), which needs no interaction of item i.

Simplifications: one two-layer network on the concatenated features stands for the paper's text, tag and number
branches; both fits run in the same steps, with v held fixed in the second, which ends where one after the other does.
warm: items with training interactions keep their v_i, and only the others take f(x_i).

Shapes: U users, I items, d width, w feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.data.sampling import Batch
from m3dist.models.base import Given, Recommender, Settings, need_features, xavier


@dataclass(frozen=True)
class CB2CFSettings(Settings):
    hidden: int = 256
    warm: bool = False


class CB2CF(Recommender):
    known_I: Tensor
    Options = CB2CFSettings

    def __init__(self, given: Given, settings: CB2CFSettings):
        need_features(given, "cb2cf")
        super().__init__(given, settings)
        dim = settings.dim
        self.user, self.item = xavier(given.n_users, dim), xavier(given.n_items, dim)
        self.first, self.second = nn.Linear(given.width, settings.hidden), nn.Linear(settings.hidden, dim)
        known_I = torch.bincount(given.item.long(), minlength=given.n_items) > 0
        self.register_buffer("known_I", known_I & settings.warm, persistent=False)

    def content(self, feature_Rw: Tensor) -> Tensor:
        """f(x), [R, d]."""
        return self.second(F.relu(self.first(feature_Rw)))

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return self.user[batch.user_b], self.item[batch.item_b], self.item[batch.negative]

    def extra(self, batch: Batch) -> dict[str, Tensor]:
        error_bd = self.item[batch.item_b].detach() - self.content(self.feature[batch.item_b])
        return {"regression": error_bd.square().sum() / batch.size}

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.user, torch.where(self.known_I[:, None], self.item, self.content(self.feature))

    def ego(self) -> tuple[Tensor, Tensor | None]:
        return self.user, self.item
