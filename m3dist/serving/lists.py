"""Lists of recommendations as tables, with the reasons for each.

Shapes: u users of a block, I items, k list length, M members, T items of a history, n rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.evaluation.ranking import Block, Ranking, Scorer, Seen, Users
from m3dist.method.fused import Fused
from m3dist.serving.catalogue import Catalogue
from m3dist.serving.rules import POOL, Applied, Rules, diversified

NEAREST = 3  # items of the history that a reason names
_BLOCK = 1 << 24  # numbers of a block's largest tensor


@dataclass(frozen=True)
class Group:
    """Users who rank by one scorer. ids: original ones, by place; users: places of those to rank; seen: by place."""

    ids: pa.Array | pa.ChunkedArray
    users: np.ndarray
    seen: list[Seen]
    score: Scorer


@dataclass(frozen=True)
class Lists:
    """How lists are made. block: users at once; names: of the members, for the columns of their weights."""

    catalogue: Catalogue
    k: int
    block: int
    names: list[str]
    rules: Rules
    reasons: bool = False

    def table(self, group: Group) -> pa.Table:
        """A row each recommendation: user, rank, item, score and weight_<name>; with reasons also `reason`, the
        member that weighed most, and because_1 to because_3, the nearest items of the user's history.

        Raises ValueError where diversity needs content, or reasons members, that the run does not have.
        """
        rules, content_Iw = self.rules, self.catalogue.content_Iw
        if rules.diverse and content_Iw is None:
            raise ValueError("diverse: the run has no content to tell items apart by; leave it out")
        if self.reasons and not isinstance(group.score, Fused):
            raise ValueError("reasons: this model has no members whose scores could be told apart; leave them out")
        k = self.k * POOL if rules.diverse else self.k
        applied = Applied(rules, self.catalogue, group.ids)
        ranking = Ranking(group.score, group.seen, len(self.catalogue), k, self.block, rules.include_seen, applied)
        parts = []
        with torch.no_grad():
            for block in ranking.blocks(Users.of(group.users, self.catalogue.trained_I.device)):
                if rules.diverse and content_Iw is not None:
                    block = diversified(block, content_Iw, rules.diverse, self.k)
                parts.append(self._part(block, group))
        return pa.concat_tables(parts)

    def _part(self, block: Block, group: Group) -> pa.Table:
        """A block's lists."""
        item_uk, score_uk = block.item_uk.cpu(), block.score_uk.cpu()
        users, width = item_uk.shape
        listed = (score_uk > float("-inf")).flatten()
        weight_uM = torch.ones(users, 1) if block.weight_uM is None else block.weight_uM.cpu()
        names = ["model"] if block.weight_uM is None else self.names
        columns: dict[str, Any] = {
            "user": group.ids.take(pa.array(np.repeat(block.users.here, width)[listed.numpy()])),
            "rank": torch.arange(1, width + 1).repeat(users)[listed].numpy(),
            "item": self.catalogue.ids.take(pa.array(item_uk.flatten()[listed].numpy())),
            "score": score_uk.flatten()[listed].numpy(),
        }
        weight_nM = weight_uM.repeat_interleave(width, 0)[listed]
        columns |= {f"weight_{name}": weight_nM[:, m].numpy() for m, name in enumerate(names)}
        if self.reasons and isinstance(group.score, Fused):
            weighed_uk, near_ukT = _reasons(block, group.seen, group.score)
            told = np.array(names, dtype=object)[weighed_uk.cpu().flatten()[listed].numpy()]
            columns["reason"] = pa.array(told, pa.string())
            for at in range(NEAREST):
                item = near_ukT[:, :, at].cpu().flatten()[listed].numpy()
                columns[f"because_{at + 1}"] = self.catalogue.ids.take(pa.array(item, mask=item < 0))
        return pa.table(columns)


def _reasons(block: Block, seen: list[Seen], score: Fused) -> tuple[Tensor, Tensor]:
    """Of every listed item the member with the largest part of its score, [u, k], and the places of the items of the
    history that are nearest to it, [u, k, NEAREST], -1 where there are fewer.

    Nearness is the mean of cosines of the members' rows, weighted as the user's scores are.
    """
    members, user_u, item_uk = score.members, block.users.there_u, block.item_uk
    weight_uM = block.weight_uM if block.weight_uM is not None else item_uk.new_ones(len(user_u), 1).float()
    history_uT, there_uT = _histories(seen, block.users)
    part_M, like_ukT = [], torch.zeros(*item_uk.shape, history_uT.shape[1], device=item_uk.device)
    step = max(1, _BLOCK // max(1, (item_uk.shape[1] + history_uT.shape[1]) * members.item[0].shape[1]))
    for m, (user_Uk, item_Ik) in enumerate(zip(members.user, members.item, strict=True)):
        own = torch.empty_like(block.score_uk)
        for at in range(0, len(user_u), step):
            rows = slice(at, at + step)
            row_ukd, weight_u11 = item_Ik[item_uk[rows]], weight_uM[rows, m].view(-1, 1, 1)
            own[rows] = torch.bmm(row_ukd, user_Uk[user_u[rows]].unsqueeze(2)).squeeze(2) * weight_u11.squeeze(2)
            near_uTd = F.normalize(item_Ik[history_uT[rows]], dim=2)
            like_ukT[rows] += torch.bmm(F.normalize(row_ukd, dim=2), near_uTd.mT) * weight_u11
        part_M.append(own)
    like_ukT.masked_fill_(~there_uT.unsqueeze(1), float("-inf"))
    like_ukT.masked_fill_(history_uT.unsqueeze(1) == item_uk.unsqueeze(2), float("-inf"))  # where seen items are listed
    near_uk3 = torch.full((*item_uk.shape, NEAREST), -1, device=item_uk.device)
    value_uk3, best_uk3 = torch.topk(like_ukT, min(NEAREST, like_ukT.shape[2]), dim=2)
    found_uk3 = history_uT.unsqueeze(1).expand(-1, item_uk.shape[1], -1).gather(2, best_uk3)
    near_uk3[:, :, : best_uk3.shape[2]] = torch.where(value_uk3 > float("-inf"), found_uk3, -1)
    return torch.stack(part_M).argmax(0), near_uk3


def _histories(seen: list[Seen], users: Users) -> tuple[Tensor, Tensor]:
    """What users have seen, side by side [u, T], and where there is an item."""
    found = [one.rows(users) for one in seen]
    device = users.there_u.device
    row = torch.cat([row for row, _ in found]) if found else torch.zeros(0, dtype=torch.int64, device=device)
    item = torch.cat([item for _, item in found]) if found else row
    order = torch.argsort(row, stable=True)
    row, item = row[order], item[order]
    count_u = torch.bincount(row, minlength=len(users))
    place = torch.arange(len(row), device=device) - (count_u.cumsum(0) - count_u)[row]
    out = torch.zeros(len(users), int(count_u.max()) if len(users) else 0, dtype=torch.int64, device=device)
    there = torch.zeros_like(out, dtype=torch.bool)
    out[row, place], there[row, place] = item, True
    return out, there
