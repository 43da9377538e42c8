"""HUIGN (Wei et al., TMM 2021): users' intents, fine to coarse, as clusters of items consumed together.

Per modality, on the graph of items that share users (A, rows summing to 1, an item among its own neighbours):
    x = LeakyReLU(W A x), S_1 = softmax(x C_1)                        items into fine intents (intra- and inter-level)
    A_1 = S_1' A S_1, rows summing to 1; S_2 = softmax(LeakyReLU(W A_1 C_1') C_2), ...      intents into coarser ones
An item's intents are [S_1, S_1 S_2, ...], the mean over modalities; score = u_id . v_id + preference_u . intents_i.
Loss: BPR + weight (entropy of the assignments + ||C'C - I|| / k^2, independence of the intents), as the authors' code.

Simplifications: A holds each item's `neighbours` strongest co-occurrences (their code a dense items x items matrix);
features are projected to d; a user's preferences over intents are free, as in their code.

Shapes: U users, I items, k_l intents of level l, k their sum, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.data.graphs import item_neighbours
from m3dist.models.base import Batch, Given, Recommender, Settings, need_features, xavier
from m3dist.models.sparse import Graph


class Intents(nn.Module):
    """One modality's hierarchy."""

    def __init__(self, width: int, dim: int, levels: tuple[int, ...]):
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.convolve = nn.ModuleList(nn.Linear(dim, dim) for _ in levels)
        self.centre = nn.ParameterList(xavier(dim, k) for k in levels)

    def forward(self, feature_Iw: Tensor, graph: Graph, weight_E: Tensor) -> tuple[Tensor, Tensor]:
        """Intents [I, k], and entropy plus dependence."""
        near_kd = graph(weight_E, self.project(feature_Iw))
        levels: list[Tensor] = []
        penalty = near_kd.new_zeros(())
        adjacency_kk: Tensor | None = None
        for convolve, centre_dk in zip(self.convolve, self.centre, strict=True):
            share = torch.softmax(F.leaky_relu(convolve(near_kd)) @ centre_dk, dim=1)
            penalty = penalty - (share * (share + 1e-15).log()).sum(1).mean()
            k = centre_dk.shape[1]
            gram_kk = centre_dk.T @ centre_dk - torch.eye(k, device=share.device)
            penalty = penalty + gram_kk.norm() / k**2
            levels.append(share if not levels else levels[-1] @ share)
            if len(levels) < len(self.centre):
                around = graph(weight_E, share) if adjacency_kk is None else adjacency_kk @ share
                adjacency_kk = share.T @ around
                adjacency_kk = adjacency_kk / adjacency_kk.sum(1, keepdim=True)
                near_kd = adjacency_kk @ centre_dk.T
        return torch.cat(levels, dim=1), penalty


@dataclass(frozen=True)
class HUIGNSettings(Settings):
    levels: tuple[int, ...] = (32, 8)
    neighbours: int = 20
    weight: float = 0.01


class HUIGN(Recommender):
    weight_E: Tensor
    Options = HUIGNSettings

    def __init__(self, given: Given, settings: HUIGNSettings):
        need_features(given, "huign")
        super().__init__(given, settings)
        dim = settings.dim
        self.widths, self.weight = [x.shape[1] for x in given.features], settings.weight
        self.user, self.item = xavier(given.n_users, dim), xavier(given.n_items, dim)
        self.preference = xavier(given.n_users, sum(settings.levels))
        self.intents = nn.ModuleList(Intents(width, dim, settings.levels) for width in self.widths)
        pairs = given.user.cpu().numpy(), given.item.cpu().numpy()
        most = min(settings.neighbours, given.n_items - 1)
        near, omega = (x[:-1] for x in item_neighbours(pairs, (given.n_users, given.n_items), most))
        kept = omega > 0
        own = np.arange(given.n_items)
        destination = np.concatenate([np.broadcast_to(own[:, None], near.shape)[kept], own])
        source = np.concatenate([near[kept], own])
        self.graph = Graph(torch.from_numpy(destination), torch.from_numpy(source), given.n_items, given.n_items)
        self.register_buffer("weight_E", self.graph.mean(), persistent=False)

    def hierarchy(self) -> tuple[Tensor, Tensor]:
        """Intents of every item [I, k], and the penalty, means over modalities."""
        parts = self.feature.split(self.widths, dim=1)
        found = [intents(x, self.graph, self.weight_E) for intents, x in zip(self.intents, parts, strict=True)]
        return torch.stack([x for x, _ in found]).mean(0), torch.stack([penalty for _, penalty in found]).mean()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.found = self.hierarchy()  # once for the scores and the penalty
        return super().loss(batch)

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        user_Uk = torch.cat([self.user, self.preference], dim=1)
        item_Ik = torch.cat([self.item, self.found[0]], dim=1)
        return user_Uk[batch.user_b], item_Ik[batch.item_b], item_Ik[batch.negative]

    def extra(self, batch: Batch) -> dict[str, Tensor]:
        return {"intents": self.weight * self.found[1] * batch.part}

    def vectors(self) -> tuple[Tensor, Tensor]:
        return torch.cat([self.user, self.preference], dim=1), torch.cat([self.item, self.hierarchy()[0]], dim=1)

    def ego(self) -> tuple[Tensor, Tensor | None]:
        return self.user, self.item
