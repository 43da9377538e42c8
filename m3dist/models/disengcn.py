"""DisenGCN (Ma et al., ICML 2019): a node's vector in K channels, neighbours routed to the channel that ties them.

A layer (eq. 1 and algorithm 1): z_ik = normalise(LeakyReLU(W_k x_i + b_k)), c_ik starts as z_ik, and `routing` times
    p_jk = softmax_k(z_jk . c_ik / tau)   of every neighbour j,
    c_ik = normalise(z_ik + sum_j p_jk z_jk).
Channels are concatenated; a linear map, where the paper has its classifier, gives the vectors of BPR.

Simplifications: the same number of channels in every layer, no dropout. Nodes start from id vectors, items with
their content added.

Shapes: n = U + I nodes, E edges, K channels, d width (K divides d).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.models.base import Given, GraphRecommender, Settings
from m3dist.models.sparse import dots, spread


@dataclass(frozen=True)
class DisenGCNSettings(Settings):
    channels: int = 4
    layers: int = 1
    routing: int = 2
    tau: float = 1.0
    content: bool = True


class DisenGCN(GraphRecommender):
    Options = DisenGCNSettings

    def __init__(self, given: Given, settings: DisenGCNSettings):
        dim, channels = settings.dim, settings.channels
        if dim % channels:
            raise ValueError(f"baseline.options.channels: {channels} channels do not divide baseline.dim {dim}")
        super().__init__(given, settings, settings.content)
        self.channels, self.routing, self.tau = settings.channels, settings.routing, settings.tau
        self.into = nn.ModuleList(nn.Linear(dim, dim) for _ in range(settings.layers))
        self.out = nn.Linear(dim, dim)

    def layer(self, x_nd: Tensor) -> Tensor:
        """Of projected nodes, [n, d] in and out."""
        z = [F.normalize(part) for part in F.leaky_relu(x_nd).chunk(self.channels, dim=1)]
        c = z
        for _ in range(self.routing):
            tie_KE = torch.stack([dots(self.graph, c_k, z_k) for c_k, z_k in zip(c, z, strict=True)])
            share_KE = torch.softmax(tie_KE / self.tau, dim=0)
            near = [spread(self.graph, p_E, z_k) for p_E, z_k in zip(share_KE, z, strict=True)]
            c = [F.normalize(z_k + near_k) for z_k, near_k in zip(z, near, strict=True)]
        return torch.cat(c, dim=1)

    def vectors(self) -> tuple[Tensor, Tensor]:
        node_nd = self.nodes()
        for into in self.into:
            node_nd = self.layer(into(node_nd))
        return self.split(self.out(node_nd))
