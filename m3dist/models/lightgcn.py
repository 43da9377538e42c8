"""LightGCN (He et al., SIGIR 2020): ids' embeddings propagated along the interactions and averaged over layers.

Eq. 7, 8: E^(l+1) = D^-1/2 A D^-1/2 E^(l), and a node's vector is the mean of E^(0) to E^(layers). `tau` trains it by a
softmax of cosines over this temperature (Wu et al., TOIS 2024) in place of BPR; `content` starts items from v_i +
W f_i, where the paper knows ids alone.

Shapes: U users, I items, n = U + I nodes, b positives, N shared or own negatives, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from m3dist.losses import ranking
from m3dist.models.base import Batch, Given, GraphRecommender, Settings, positive_and_negative


@dataclass(frozen=True)
class LightGCNSettings(Settings):
    layers: int = 3
    content: bool = False
    tau: float = 0.0  # 0: BPR


class LightGCN(GraphRecommender):
    weight_E: Tensor
    Options = LightGCNSettings

    def __init__(self, given: Given, settings: LightGCNSettings):
        super().__init__(given, settings, settings.content)
        self.layers, self.tau = settings.layers, settings.tau
        self.register_buffer("weight_E", self.graph.symmetric(), persistent=False)

    def vectors(self) -> tuple[Tensor, Tensor]:
        layer_nd = total_nd = self.nodes()
        for _ in range(self.layers):
            layer_nd = self.graph(self.weight_E, layer_nd)
            total_nd = total_nd + layer_nd
        mean_nd = total_nd / (self.layers + 1)
        return self.split(F.normalize(mean_nd) if self.tau else mean_nd)

    def ranked(self, batch: Batch) -> dict[str, Tensor]:
        if not self.tau:
            return super().ranked(batch)
        positive_b, negative_bN = positive_and_negative(*self.rows(batch))
        return {"softmax": ranking.softmax(positive_b / self.tau, negative_bN / self.tau) / batch.size}
