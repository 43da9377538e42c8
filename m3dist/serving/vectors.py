"""One vector a user and one an item, whose inner product is the run's score.

A fused score is sum_m omega_um (u_m . v_m), so [omega_u1 u_1, ..., omega_uM u_M] and [v_1, ..., v_M] have it as theirs.

Shapes: U users, u of a block, I items, M members, W width of all members' rows side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pyarrow as pa
import torch
from torch import Tensor

from m3dist.evaluation.ranking import Mask, Seen, Users
from m3dist.method import registry
from m3dist.method.fused import Fused
from m3dist.models.base import Recommender
from m3dist.serving.lists import Group


def column(rows_nw: Tensor) -> pa.FixedSizeListArray:
    """Rows [n, w] as a column of float32 lists of length w."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows_nw.float().cpu().numpy().ravel()), rows_nw.shape[1])


class Vectors:
    """Vectors of a group of users and of the items that they rank.

    model: the run's value of that key; tensors: of its final stage. Raises ValueError where a model's scores are no
    inner products.
    """

    def __init__(self, group: Group, model: str, tensors: dict[str, Tensor], block: int):
        self.group, self.block = group, block
        if isinstance(group.score, Fused):
            members = group.score.members
            self.users, self.items = members.user, members.item
        else:
            kind = registry.recommender_class(model)
            if kind.score is not Recommender.score:
                raise ValueError(f"scores of model={model} are no inner products of vectors")
            self.users, self.items = [tensors["user"]], [tensors["item"]]

    @functools.cached_property
    def item_IW(self) -> Tensor:
        """Every item's vector."""
        return torch.cat([item.float() for item in self.items], dim=1)

    @property
    def width(self) -> int:
        """W"""
        return sum(item.shape[1] for item in self.items)

    def rows(self, names: list[str], item_ids: pa.ChunkedArray) -> tuple[pa.Table, pa.Table]:
        """Users' and items' tables: `id`, and vector_<name> of every member, unweighted. names: of the members."""
        group, users = self.group, torch.from_numpy(self.group.users)
        found = [user[users.to(user.device)] for user in self.users]
        labels = ["id", *(f"vector_{name}" for name in names)]
        return (
            pa.table([group.ids.take(pa.array(group.users)), *map(column, found)], names=labels),
            pa.table([item_ids, *map(column, self.items)], names=labels),
        )

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
