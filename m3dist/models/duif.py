"""DUIF (Geng et al., ICCV 2015): users and items meet in the space of the items' deep features.

score = x_u . W2 relu(W1 f_i + b1), ranked pairwise; a bias after W2 would cancel between the two items of a pair.
An item has no vector of its own.

Simplifications: the image network's convolutions are the given, fixed features (all modalities, concatenated), and a
user's vector is free, since a data set here has no social network to learn it from.

Shapes: U users, I items, d width, w feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.data.sampling import Batch
from m3dist.models.base import Given, Recommender, Settings, distinct_items, need_features, xavier


@dataclass(frozen=True)
class DUIFSettings(Settings):
    hidden: int = 128


class DUIF(Recommender):
    Options = DUIFSettings

    def __init__(self, given: Given, settings: DUIFSettings):
        need_features(given, "duif")
        super().__init__(given, settings)
        dim = settings.dim
        self.user = xavier(given.n_users, dim)
        self.first, self.second = nn.Linear(given.width, settings.hidden), nn.Linear(settings.hidden, dim, bias=False)

    def seen(self, feature_Rw: Tensor) -> Tensor:
        """Items' vectors [R, d] of their features."""
        return self.second(F.relu(self.first(feature_Rw)))

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.user, self.seen(self.feature)

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        ids, at_b, at_negative = distinct_items(batch)
        item = self.seen(self.feature[ids])
        return self.user[batch.user_b], item[at_b], item[at_negative]

    def ego(self) -> tuple[Tensor, Tensor | None]:
        return self.user, None
