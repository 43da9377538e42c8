"""GRCN (Wei et al., ACM MM 2020): the interaction graph refined by content before ids are convolved over it.

Per modality m, with f = normalise(LeakyReLU(W_m x + b)) of items and prototypes p = normalise(P_m) of users:
    `routing` times  p_u = normalise(p_u + sum_i softmax_i(p_u . f_i) f_i)                    (eq. 2-4)
    a_ij = softmax over the neighbours j of i of x_i . x_j, x = [p; f], both directions       (eq. 5-6)
    content = x + sum_j a_ij x_j
Edges weigh w_ij = relu(max_m conf_jm a_ijm) (eq. 7-9), and id vectors run e + A_w e + A_w^2 e from unit length.
A node's vector is [id, content of every modality].

Simplifications: no dropout of edges; confidences start at 1 (from near 0 half of the edges would start pruned, with
no gradient to bring them back); every modality is projected to d.

Shapes: U users, I items, n = U + I nodes, E edges, M modalities, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.models.base import Given, GraphRecommender, Settings, need_features, xavier
from m3dist.models.sparse import dots, softmax, spread


@dataclass(frozen=True)
class GRCNSettings(Settings):
    routing: int = 2
    layers: int = 2


class GRCN(GraphRecommender):
    Options = GRCNSettings

    def __init__(self, given: Given, settings: GRCNSettings):
        need_features(given, "grcn")
        super().__init__(given, settings, content=False)
        dim = settings.dim
        self.routing, self.depth = settings.routing, settings.layers
        self.widths = [x.shape[1] for x in given.features]
        self.to_users = given.to_users()
        self.prototype = nn.ParameterList(xavier(given.n_users, dim) for _ in self.widths)
        self.projects = nn.ModuleList(nn.Linear(width, dim) for width in self.widths)
        self.confidence = nn.Parameter(torch.ones(given.n_users + given.n_items, len(self.widths)))

    def modality(self, m: int, feature_Iw: Tensor) -> tuple[Tensor, Tensor]:
        """Content [n, d] and attention of every edge [E]."""
        f_Id = F.normalize(F.leaky_relu(self.projects[m](feature_Iw)))
        p_Ud = F.normalize(self.prototype[m])
        for _ in range(self.routing):
            near = softmax(self.to_users, dots(self.to_users, p_Ud, f_Id))
            p_Ud = F.normalize(p_Ud + spread(self.to_users, near, f_Id))
        x_nd = torch.cat([p_Ud, f_Id])
        attention_E = softmax(self.graph, dots(self.graph, x_nd, x_nd))
        return x_nd + spread(self.graph, attention_E, x_nd), attention_E

    def vectors(self) -> tuple[Tensor, Tensor]:
        parts = self.feature.split(self.widths, dim=1)
        contents, attention = zip(*(self.modality(m, x) for m, x in enumerate(parts)), strict=True)
        confidence_EM = self.confidence.index_select(0, self.graph.col)
        weight_E = F.relu((torch.stack(attention, dim=1) * confidence_EM).amax(1))
        node_nd = F.normalize(self.nodes())
        total_nd = node_nd
        for _ in range(self.depth):
            node_nd = spread(self.graph, weight_E, node_nd)
            total_nd = total_nd + node_nd
        return self.split(torch.cat([total_nd, *contents], dim=1))
