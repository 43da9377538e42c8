"""What a fusion is, and what it learns from.

Shapes: M members, u users, I items, n validation pairs, h users of the half.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Held(Protocol):
    """Half of the users who hold validation items out, from which a fusion may learn; the other half judges it."""

    @property
    def models(self) -> int:
        """M"""

    @property
    def seed(self) -> int:
        """The run's."""

    def metric(self, strategy: str, learned: dict[str, Tensor]) -> float:
        """The selecting metric of a strategy, with what it has learned, on this half."""

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of every pair of these users: the user's place among `confidence`, [n], members' scores of the item that is
        held out, [n, M], and of an item drawn at random, [n, M]."""

    def confidence(self) -> Tensor:
        """What `attention` reads of every user: `attention.confidence` of each member's scores, [h, 3 M]."""


class Fusion:
    """Weights of members for every user.

    A subclass learns what it needs once, on validation data, as tensors that are kept with the members; and it is made
    from these wherever the members rank.
    """

    reads_scores = True  # whether seen items are masked, at -1e30, in the scores that `weights` gets

    def __init__(self, models: int, learned: dict[str, Tensor]):
        self.models = models

    @classmethod
    def learn(cls, held: Held) -> dict[str, Tensor]:
        """Tensors by name; none by default."""
        return {}

    def weights(self, scores: list[Tensor]) -> Tensor:
        """omega [u, M], which add up to 1, from every member's scores [u, I]."""
        raise NotImplementedError


def fuse(weight_uM: Tensor, scores: list[Tensor]) -> Tensor:
    """Eq. 15: sum_m omega_m scores_m, [u, I]; overwrites the first score."""
    fused = scores[0].mul_(weight_uM[:, :1])
    for m, score_uI in enumerate(scores[1:], start=1):
        fused.addcmul_(score_uI, weight_uM[:, m : m + 1])
    return fused
