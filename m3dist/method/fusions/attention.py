"""Table 5's A-weight: a small gate on every member's confidence.

Shapes: M members, u users, I items, F = 3 M numbers of confidence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.distributed.adam import Adam
from m3dist.method.fusions.base import Fusion, Held
from m3dist.method.fusions.entropy import entropy
from m3dist.seeding import derive

_STEPS, _LR = 20, 1e-2


class Gate(nn.Module):
    """softmax over M of two layers on the confidence, which is standardised over the learning users."""

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
        """[u, 3 M] -> weights [u, M]."""
        return torch.softmax(self.net((confidence_uF - self.mean) / self.std), dim=1)


class Attention(Fusion):
    """The gate learns to rank an item that is held out above one drawn at random."""

    def __init__(self, models: int, learned: dict[str, Tensor]):
        super().__init__(models, learned)
        self.gate = Gate(models)
        self.gate.load_state_dict({k.removeprefix("gate."): v for k, v in learned.items() if k.startswith("gate.")})
        self.gate.to(learned["gate.mean"].device)

    @classmethod
    def learn(cls, held: Held) -> dict[str, Tensor]:
        confidence_hF = held.confidence()
        at_n, positive_nM, negative_nM = held.pairs()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(held.seed, "gate"))
            gate = Gate(held.models).to(confidence_hF.device)
        gate.mean, gate.std = confidence_hF.mean(0), confidence_hF.std(0).clamp(min=1e-6)
        optimizer = Adam([{"params": gate.parameters(), "lr": _LR}])
        for _ in range(_STEPS):
            margin_n = (gate(confidence_hF)[at_n] * (positive_nM - negative_nM)).sum(1)
            F.softplus(-margin_n).mean().backward()
            optimizer.step()
        return {f"gate.{name}": x.detach() for name, x in gate.state_dict().items()}

    def weights(self, scores: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return self.gate(torch.cat([confidence(score_uI) for score_uI in scores], dim=1))


def confidence(score_uI: Tensor) -> Tensor:
    """What the gate reads of one member's scores: entropy, maximum, and mean over the items that are not masked."""
    there_uI = score_uI > -1e29
    mean_u = (score_uI * there_uI).sum(1) / there_uI.sum(1).clamp(min=1)
    return torch.stack([entropy(score_uI), score_uI.amax(1), mean_u], dim=1)
