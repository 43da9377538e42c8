"""NGCF (Wang et al., SIGIR 2019): embeddings propagated along the interactions, with first and second order terms.

Eq. 7: E' = LeakyReLU((L + I) E W1 + (L E o E) W2), L = D^-1/2 A D^-1/2, slope 0.2; a node's vector is the
concatenation of all layers (eq. 9), each scaled to length 1 after the first, as the authors' code does.

Simplifications: no dropout of messages and nodes. Items start from v_i + W f_i, so that the content is used; the
paper knows ids only (`content: false`).

Shapes: n = U + I nodes, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.models.base import Given, GraphRecommender, Settings


@dataclass(frozen=True)
class NGCFSettings(Settings):
    layers: int = 2
    content: bool = True


class NGCF(GraphRecommender):
    weight_E: Tensor
    Options = NGCFSettings

    def __init__(self, given: Given, settings: NGCFSettings):
        super().__init__(given, settings, settings.content)
        dim = settings.dim
        self.register_buffer("weight_E", self.graph.symmetric(), persistent=False)
        self.first = nn.ModuleList(nn.Linear(dim, dim) for _ in range(settings.layers))
        self.second = nn.ModuleList(nn.Linear(dim, dim) for _ in range(settings.layers))

    def vectors(self) -> tuple[Tensor, Tensor]:
        node_nd = self.nodes()
        kept = [node_nd]
        for first, second in zip(self.first, self.second, strict=True):
            around_nd = self.graph(self.weight_E, node_nd)
            node_nd = F.leaky_relu(first(around_nd + node_nd) + second(around_nd * node_nd), 0.2)
            kept.append(F.normalize(node_nd))
        return self.split(torch.cat(kept, dim=1))
