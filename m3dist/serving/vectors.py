"""One vector a user and one an item, whose inner product is the run's score.

A fused score is sum_m omega_um (u_m . v_m), so [omega_u1 u_1, ..., omega_uM u_M] and [v_1, ..., v_M] have it as theirs.

Shapes: U users, u of a block, I items, M members, W width of all members' rows side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from m3dist.evaluation.ranking import Mask, Seen, Users
from m3dist.method import registry
from m3dist.method.fused import Fused
from m3dist.models.base import Recommender
from m3dist.serving.lists import Group


class Vectors:
    """Vectors of a group of users and of the items that they rank.

    model: the run's value of that key; tensors: of its final stage. Raises ValueError where a model's scores are no
    inner products.
    """

    def __init__(self, group: Group, model: str, tensors: dict[str, Tensor], block: int):
        self.group, self.block = group, block
        if isinstance(group.score, Fused):
            members = group.score.members
            self.users, items = members.user, members.item
        else:
            kind = registry.recommender_class(model)
            if kind.score is not Recommender.score:
                raise ValueError(f"export: scores of model={model} are no inner products of vectors")
            self.users, items = [tensors["user"]], [tensors["item"]]
        self.item_IW = torch.cat([item.float() for item in items], dim=1)

    @property
    def width(self) -> int:
        """W"""
        return self.item_IW.shape[1]

    @torch.no_grad()
    def blocks(self) -> Iterator[tuple[Users, Tensor]]:
        """Users and their vectors [u, W], block by block."""
        group = self.group
        for some in Users.of(group.users, self.item_IW.device).blocks(self.block):
            row = [user[some.there_u.to(user.device)].float() for user in self.users]
            weight_uM = self._weights(some, group.seen)
            yield some, torch.cat([x if weight_uM is None else x * weight_uM[:, m, None] for m, x in enumerate(row)], 1)

    def _weights(self, users: Users, seen: list[Seen]) -> Tensor | None:
        score = self.group.score
        if not isinstance(score, Fused) or score.fusion is None:
            return None
        return score(users.there_u, Mask(seen, users, len(self.item_IW)))[1]
