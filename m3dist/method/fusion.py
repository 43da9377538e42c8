"""Weights of the modalities' recommenders and the fused score (eq. 13-15, table 5).

Shapes: M recommenders, u users, I items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def entropy(score_uI: Tensor) -> Tensor:
    """Eq. 13: the entropy in nats of softmax(scores) over the catalogue, [u]."""
    shifted_uI = score_uI - score_uI.amax(1, keepdim=True)
    e_uI = shifted_uI.exp()
    total_u = e_uI.sum(1)
    return total_u.log() - torch.linalg.vecdot(e_uI, shifted_uI) / total_u


def entropy_weights(entropy_uM: Tensor) -> Tensor:
    """Eq. 14: softmax(-lambda) over the recommenders, [u, M]; the shift by the maximum is softmax's own."""
    return torch.softmax(-entropy_uM, dim=1)


def equal_weights(score_uI: Tensor, models: int) -> Tensor:
    """[u, M] for the users whose scores are given."""
    return score_uI.new_full((len(score_uI), models), 1.0 / models)


def loss_weights(loss_M: Tensor) -> Tensor:
    """Weights from each recommender's share of the total validation loss, [M]: less loss, more weight.

    Table 5's text gives importance to the modality that "contributes less error": the shares of the inverse losses.
    """
    return (1 / loss_M) / (1 / loss_M).sum()


class AttentionGate(nn.Module):
    """Table 5's attention: softmax over M of a small gate on each recommender's confidence, fitted on validation data.

    Input per recommender: entropy, maximum and mean of its scores for the user, standardised over the fitting users.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, models: int, hidden: int = 16):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3 * models))
        self.register_buffer("std", torch.ones(3 * models))
        last = nn.Linear(hidden, models)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(3 * models, hidden), nn.Tanh(), last)

    def forward(self, confidence_uF: Tensor) -> Tensor:
        """[u, 3M] -> weights [u, M]."""
        return torch.softmax(self.net((confidence_uF - self.mean) / self.std), dim=1)


def confidence(score_uI: Tensor) -> Tensor:
    """What the gate reads of one recommender's scores: entropy, maximum and mean, [u, 3]."""
    return torch.stack([entropy(score_uI), score_uI.amax(1), score_uI.mean(1)], dim=1)


def fuse(weight_uM: Tensor, scores: list[Tensor]) -> Tensor:
    """Eq. 15: sum_m omega_m scores_m, [u, I]; overwrites the first score."""
    fused = scores[0].mul_(weight_uM[:, :1])
    for m, score_uI in enumerate(scores[1:], start=1):
        fused.addcmul_(score_uI, weight_uM[:, m : m + 1])
    return fused
