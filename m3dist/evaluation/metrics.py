"""Ranking metrics as sums over users, which add up across blocks and workers; no averages of averages.

Everything stays on the device until the sums are read, once.

Shapes: u users of a block, I items, k list length, M recommenders of a fusion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from m3dist.distributed.engine import Engine
from m3dist.evaluation.ranking import Block, Ranking, Seen, Users
from m3dist.evaluation.topk import top_k

_TOGETHER = 1 << 13  # users whose metrics are found at once


def per_user(hit_uk: Tensor, relevant_u: Tensor, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """Metrics of every user, float64 [u], at every K; all are 0 where nothing is relevant.

    precision, recall, hit; mrr of the first hit; ndcg divides by the ideal DCG of min(relevant, K) items;
    ndcg_hits by that of the number of hits, as InvRL's published code does.
    """
    hit = hit_uk.double()
    place = torch.arange(hit.shape[1], device=hit.device, dtype=torch.float64)
    discount = 1 / torch.log2(place + 2)
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])
    out: dict[str, Tensor] = {}
    for k in ks:
        top = hit[:, :k]
        n = top.sum(1)
        dcg = (top * discount[:k]).sum(1)
        cut = relevant_u.clamp(max=min(k, hit.shape[1]))
        out[f"precision@{k}"] = n / k
        out[f"recall@{k}"] = n / relevant_u.clamp(min=1)
        out[f"ndcg@{k}"] = dcg / ideal[cut].clamp(min=1e-300)
        out[f"hit@{k}"] = (n > 0).double()
        out[f"mrr@{k}"] = (top / (place[:k] + 1)).max(1).values
        out[f"ndcg_hits@{k}"] = torch.where(n > 0, dcg / ideal[n.long()].clamp(min=1e-300), 0.0)
    return out


@dataclass(frozen=True)
class Judged:
    """What lists are held against: relevant items, and the K of the metrics.

    cold: the relevant items among `cold_C`, ids of the items without training interactions; None where there are none.
    """

    relevant: Seen
    ks: tuple[int, ...]
    cold: Seen | None = None
    cold_C: Tensor | None = None


@dataclass
class Metrics:
    """Sums over users on the device, by name; how many users and, for `/cold`, users with a cold item there were.

    listed: per K, how often each item was recommended [I].
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    listed: dict[int, Tensor] = field(default_factory=dict)
    users: int = 0
    cold_users: int = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Per-user values [u]."""
        for name, value_u in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value_u.sum()

    def means(self, engine: Engine, cold_C: Tensor | None) -> dict[str, float]:
        """Means over the users of all workers; coverage: share of the catalogue ever listed.

        `/cold` and `/cold-only` are left out where no user has a held-out cold item.
        """
        names = sorted(self.sums)
        sums_T = torch.stack([self.sums[name] for name in names])
        engine.add_up([sums_T, *self.listed.values()])
        counts = engine.totals({"users": self.users, "cold": self.cold_users})
        out = {}
        for name, total in zip(names, sums_T.tolist(), strict=True):
            users = counts["cold" if "/cold" in name else "users"]
            if users or "/cold" not in name:
                out[name] = total / max(users, 1)
        for k, count_I in self.listed.items():
            out[f"coverage@{k}"] = float((count_I > 0).double().mean())
            if cold_C is not None and counts["cold"]:
                out[f"coverage@{k}/cold"] = float((count_I[cold_C] > 0).double().mean())
        return out


def evaluate(ranking: Ranking, users: np.ndarray, judged: Judged, keep: bool = False) -> tuple[Metrics, dict]:
    """Rank the catalogue for `users` and add up their metrics; users without a relevant item are left out.

    With `keep` also returns every user's metrics and fusion weights: {"user": int64 [n], name: float64 [n]}. `/cold`
    metrics count only cold items as relevant, in the ranking of the whole catalogue; `/cold-only` rank the cold items
    among themselves.
    """
    relevant, device = judged.relevant, judged.relevant.item.device
    users = users[relevant.count_here(users) > 0]
    zeros = torch.zeros(ranking.n_items, dtype=torch.float64, device=device)
    total = Metrics(listed={k: zeros.clone() for k in judged.ks}, users=len(users))
    kept: list[dict[str, Tensor]] = []
    for some, item_uk, there_uk, further in _gathered(ranking.blocks(Users.of(users, device)), judged):
        hit_uk = relevant.hold(some, item_uk) & there_uk
        values = per_user(hit_uk, relevant.count(some), judged.ks)
        total.add(values | further)
        if judged.cold is not None:
            count_u = judged.cold.count(some)
            of_cold = per_user(judged.cold.hold(some, item_uk) & there_uk, count_u, judged.ks)
            total.add({f"{name}/cold": x for name, x in of_cold.items()})
            total.cold_users += int((judged.cold.count_here(some.here) > 0).sum())
        for at in judged.ks:
            listed = item_uk[:, :at].flatten()
            total.listed[at].index_add_(0, listed, torch.ones_like(listed, dtype=torch.float64))
        if keep:
            weights = {name: x for name, x in further.items() if name.startswith("fusion weight")}
            kept.append({"user": some.there_u, **values, **weights})
    table = {name: torch.cat([part[name] for part in kept]).cpu().numpy() for name in kept[0]} if kept else {}
    return total, table


Lists = tuple[Users, Tensor, Tensor, dict[str, Tensor]]  # users, items [u, k], whether they may be listed, values [u]


def _gathered(blocks: Iterator[Block], judged: Judged) -> Iterator[Lists]:
    """Many blocks together: metrics are many small operations. Values: of fusions and of cold items."""
    parts: list[Lists] = []
    count = 0
    for block in blocks:
        further = (
            {f"fusion weight {m}": x for m, x in enumerate(block.weight_uM.double().T)}
            if block.weight_uM is not None
            else {}
        )
        parts.append((block.users, block.item_uk, block.score_uk > float("-inf"), further | _among_cold(block, judged)))
        count += len(block.users)
        if count >= _TOGETHER:
            yield _joined(parts)
            parts, count = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[Lists]) -> Lists:
    users = Users(np.concatenate([p[0].here for p in parts]), torch.cat([p[0].there_u for p in parts]))
    item_uk, there_uk = torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])
    return users, item_uk, there_uk, {name: torch.cat([p[3][name] for p in parts]) for name in parts[0][3]}


def _among_cold(block: Block, judged: Judged) -> dict[str, Tensor]:
    """`/cold-only` metrics of a block's users."""
    if judged.cold is None or judged.cold_C is None:
        return {}
    at_uk, score_uk = top_k(block.scores.index_select(1, judged.cold_C), max(judged.ks))
    hit_uk = judged.cold.hold(block.users, judged.cold_C[at_uk]) & (score_uk > float("-inf"))
    values = per_user(hit_uk, judged.cold.count(block.users), judged.ks)
    return {f"{name}/cold-only": x for name, x in values.items()}
