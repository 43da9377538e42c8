"""Eq. 13-14: members by how certain they are of the user's ranking.

Shapes: M members, u users, I items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m3dist.method.fusions.base import Fusion, Held

TEMPERATURES = (1.0, 0.5, 0.25, 0.125, 0.0625)


class Entropy(Fusion):
    """omega = softmax(-lambda), lambda_m the entropy in nats of softmax(scores_m / T) over the items that are not seen.

    Scores of the size that the loss leaves them are nearly flat over a catalogue, so that all entropies are alike; T
    gives them room. It is learned, and with it whether weights follow entropies at all: `strength` is 0 where equal
    weights rank the learning half no worse, and the weights are equal then.
    """

    def __init__(self, models: int, learned: dict[str, Tensor]):
        super().__init__(models, learned)
        self.temperature, self.strength = learned["entropy_temperature"], learned["entropy_strength"]

    @classmethod
    def learn(cls, held: Held) -> dict[str, Tensor]:
        tried = [_learned(1.0, 0.0), *(_learned(temperature, 1.0) for temperature in TEMPERATURES)]
        return max(tried, key=lambda learned: held.metric("entropy", learned))  # the first of the best

    def weights(self, scores: list[Tensor]) -> Tensor:
        entropy_uM = torch.stack([entropy(score_uI / self.temperature) for score_uI in scores], dim=1)
        return entropy_weights(entropy_uM * self.strength)


def _learned(temperature: float, strength: float) -> dict[str, Tensor]:
    return {"entropy_temperature": torch.tensor(temperature), "entropy_strength": torch.tensor(strength)}


def entropy(score_uI: Tensor) -> Tensor:
    """Eq. 13: the entropy in nats of softmax(scores) over the catalogue, [u]."""
    shifted_uI = score_uI - score_uI.amax(1, keepdim=True)
    e_uI = shifted_uI.exp()
    total_u = e_uI.sum(1)
    return total_u.log() - torch.linalg.vecdot(e_uI, shifted_uI) / total_u


def entropy_weights(entropy_uM: Tensor) -> Tensor:
    """Eq. 14: softmax(-lambda) over the members, [u, M]; the shift by the maximum is softmax's own."""
    return torch.softmax(-entropy_uM, dim=1)
