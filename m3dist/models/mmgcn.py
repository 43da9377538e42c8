"""MMGCN (Wei et al., ACM MM 2019): one graph convolution per modality over the interactions, tied by id vectors.

In modality m nodes start as x = normalise([P_m; W_m f_m]) with free preferences P_m of the users. A layer:
    h = LeakyReLU(mean over neighbours of W1 x)           (eq. 1-2)
    x^ = LeakyReLU(W2 x) + id                              (eq. 5)
    x' = LeakyReLU(W3 h + x^)                              (eq. 6, element-wise)
A node's vector is the mean over modalities (eq. 7 sums them, which orders items alike).

Simplifications: every modality is projected to d first, where the authors do so for the widest only; no dropout.

Shapes: n = U + I nodes, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.models.base import Given, GraphRecommender, Settings, need_features, xavier
from m3dist.models.sparse import Graph


class Convolution(nn.Module):
    """One layer of one modality."""

    def __init__(self, dim: int):
        super().__init__()
        self.near, self.own, self.merge = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, graph: Graph, mean_E: Tensor, x_nd: Tensor, id_nd: Tensor) -> Tensor:
        h_nd = F.leaky_relu(graph(mean_E, self.near(x_nd)))
        own_nd = F.leaky_relu(self.own(x_nd)) + id_nd
        return F.leaky_relu(self.merge(h_nd) + own_nd)


@dataclass(frozen=True)
class MMGCNSettings(Settings):
    layers: int = 2


class MMGCN(GraphRecommender):
    weight_E: Tensor
    Options = MMGCNSettings

    def __init__(self, given: Given, settings: MMGCNSettings):
        need_features(given, "mmgcn")
        super().__init__(given, settings, content=False)
        dim = settings.dim
        self.widths = [x.shape[1] for x in given.features]
        self.register_buffer("weight_E", self.graph.mean(), persistent=False)
        self.preference = nn.ParameterList(xavier(given.n_users, dim) for _ in self.widths)
        self.projects = nn.ModuleList(nn.Linear(width, dim) for width in self.widths)
        self.depth = settings.layers
        self.layers = nn.ModuleList(Convolution(dim) for _ in range(settings.layers * len(self.widths)))

    def modality(self, m: int, feature_Iw: Tensor, id_nd: Tensor) -> Tensor:
        """Nodes after the convolutions of modality m, [n, d]."""
        x_nd = F.normalize(torch.cat([self.preference[m], self.projects[m](feature_Iw)]))
        for layer in self.layers[m * self.depth : (m + 1) * self.depth]:
            x_nd = layer(self.graph, self.weight_E, x_nd, id_nd)
        return x_nd

    def vectors(self) -> tuple[Tensor, Tensor]:
        parts = self.feature.split(self.widths, dim=1)
        id_nd = self.nodes()
        return self.split(torch.stack([self.modality(m, x, id_nd) for m, x in enumerate(parts)]).mean(0))
