"""Table 5's E-weight: every member alike."""

from __future__ import annotations

from torch import Tensor

from m3dist.method.fusions.base import Fusion


class Equal(Fusion):
    reads_scores = False

    def weights(self, scores: list[Tensor]) -> Tensor:
        return scores[0].new_full((scores[0].shape[0], self.models), 1.0 / self.models)
