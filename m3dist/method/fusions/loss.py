"""Table 5's L-weight: members by their share of the validation loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from m3dist.method.fusions.base import Fusion, Held


class Loss(Fusion):
    """One weight per member. Table 5's text gives importance to the modality that "contributes less error": the shares
    of the inverse losses."""

    reads_scores = False

    def __init__(self, models: int, learned: dict[str, Tensor]):
        super().__init__(models, learned)
        self.weight_M = learned["loss_weight"]

    @classmethod
    def learn(cls, held: Held) -> dict[str, Tensor]:
        _, positive_nM, negative_nM = held.pairs()
        return {"loss_weight": shares(F.softplus(negative_nM - positive_nM).mean(0))}

    def weights(self, scores: list[Tensor]) -> Tensor:
        return self.weight_M.expand(scores[0].shape[0], -1)


def shares(loss_M: Tensor) -> Tensor:
    """Of the inverse losses, [M]."""
    return (1 / loss_M) / (1 / loss_M).sum()
