"""Exact top-K over the whole catalogue in blocks of users, and metrics as sums that add up across workers.

Ties break by item id. Memory is bounded by one block of scores.

Shapes: u users of a block, I items, K list length, n held-out pairs, G groups of columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_GROUP = 16  # columns whose maximum stands for them in the first pass
_NAN = "the model's scores hold NaN; lower the learning rate"


def _order_keys(score: Tensor, item: Tensor) -> Tensor:
    """int64 keys that sort by score, then by smaller id. NaN has no place among them."""
    score = score.float() + 0.0  # -0.0 and 0.0 tie
    bits = score.contiguous().view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return (ordered << 32) | (0x7FFFFFFF - item)


def top_k(score_uI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best items of every row: ids int64 and scores, [u, k], best first, ties to the smaller id.

    Two passes. Columns g, g + G, g + 2G, ... form group g; the k groups with the best maxima hold the k best items
    unless the k-th maximum is tied with a group left out, since k items beat everything outside. Only these groups'
    columns are looked at. Rows with a tie in either pass are sorted whole. k is cut to I. Raises FloatingPointError
    on NaN.
    """
    u, n_items = score_uI.shape
    k = min(k, n_items)
    device = score_uI.device
    groups = n_items // _GROUP
    if groups <= 2 * k:
        score, item = _largest(score_uI, k)
        return _settled(score_uI, item, score, torch.zeros(u, dtype=torch.bool, device=device), k)
    tail = torch.arange(groups * _GROUP, n_items, device=device)
    maximum_uG = score_uI[:, : groups * _GROUP].unflatten(1, (_GROUP, groups)).amax(1)
    value, best_uk = _largest(maximum_uG, k)
    columns = (best_uk[:, :k].unsqueeze(2) + torch.arange(_GROUP, device=device) * groups).flatten(1)
    columns = torch.cat([columns, tail.expand(u, len(tail))], dim=1)
    score, at = _largest(score_uI.gather(1, columns), k)
    return _settled(score_uI, columns.gather(1, at), score, value[:, k - 1] == value[:, k], k)


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k + 1 largest of every row and where, or all; NaN comes first."""
    value, at = torch.topk(x, min(k + 1, x.shape[1]), dim=1)
    if torch.isnan(value[:, :1]).any():
        raise FloatingPointError(_NAN)
    return value, at


def _settled(score_uI: Tensor, item: Tensor, score: Tensor, doubtful_u: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k of candidates [u, k + 1 or k], best first; doubtful rows, and those with a tie, are sorted whole."""
    rows = (doubtful_u | (score[:, 1:] == score[:, :-1]).any(1)).nonzero().squeeze(1)
    item, score = item[:, :k], score[:, :k]
    if len(rows):
        everything = torch.arange(score_uI.shape[1], device=score_uI.device).expand(len(rows), -1)
        item[rows], score[rows] = _sorted(score_uI[rows], everything, k)
    return item, score


def _sorted(score: Tensor, item: Tensor, k: int) -> tuple[Tensor, Tensor]:
    at = torch.topk(_order_keys(score, item), k, dim=1).indices
    return item.gather(1, at), score.gather(1, at)


@dataclass(frozen=True)
class Seen:
    """Items of each user in ascending order, as a CSR pair: bounds int64 [U + 1], item int64 [n]."""

    bounds: Tensor
    item: Tensor

    @staticmethod
    def of(pairs: tuple[np.ndarray, np.ndarray], n_users: int, device: str | torch.device = "cpu") -> Seen:
        """Of (user, item) pairs; those of a prepared split are in order already and are not sorted again."""
        user, item = pairs
        if len(user) > 1 and bool((np.diff(user) < 0).any() or ((np.diff(user) == 0) & (np.diff(item) < 0)).any()):
            order = np.lexsort((item, user))
            user, item = user[order], item[order]
        bounds = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(user, minlength=n_users), out=bounds[1:])
        return Seen(torch.from_numpy(bounds).to(device), torch.from_numpy(item.astype(np.int64)).to(device))

    def only(self, kept_I: Tensor) -> Seen:
        """The same users, with the items that `kept_I`, bool [I], marks."""
        total = torch.zeros(len(self.item) + 1, dtype=torch.int64, device=self.item.device)
        total[1:] = kept_I[self.item].cumsum(0)
        return Seen(total[self.bounds], self.item[kept_I[self.item]])

    def flat(self, user_u: Tensor, n_items: int) -> Tensor:
        """Positions in a flattened [u, I] block of the seen items of `user_u`."""
        low, count = self.bounds[user_u], self.bounds[user_u + 1] - self.bounds[user_u]
        row = torch.repeat_interleave(torch.arange(len(user_u), device=user_u.device), count)
        offset = torch.arange(len(row), device=user_u.device) - (count.cumsum(0) - count)[row]
        return row * n_items + self.item[low[row] + offset]

    def count(self, user_u: Tensor) -> Tensor:
        return self.bounds[user_u + 1] - self.bounds[user_u]


def mask_seen(score_uI: Tensor, user_u: Tensor, seen: Seen) -> Tensor:
    """Set seen items' scores to -inf, in place."""
    score_uI.view(-1).index_fill_(0, seen.flat(user_u, score_uI.shape[1]), float("-inf"))
    return score_uI


_TOGETHER = 1 << 13  # users whose metrics are found at once

# users [u] -> scores [u, I], which may be overwritten until the next call, and where the scorer is a fusion of M
# recommenders their weights [u, M]
Scorer = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Product:
    """The scores of users, u . v. Memory that is new in every block costs more than the product itself."""

    def __init__(self, user_Ud: Tensor, item_Id: Tensor):
        self.user_Ud, self.item_dI = user_Ud.detach(), item_Id.detach().T
        self._score = user_Ud.new_empty(0, len(item_Id))

    def __call__(self, user_u: Tensor) -> Tensor:
        """[u, I]; the next call overwrites it."""
        if len(self._score) < len(user_u):
            self._score = self._score.new_empty(len(user_u), self._score.shape[1])
        return torch.mm(self.user_Ud.index_select(0, user_u), self.item_dI, out=self._score[: len(user_u)])


class Block(NamedTuple):
    """Some users, their best items with scores, best first, and the fusion's weights where there is one.

    An item that may not be listed has score -inf.
    """

    user_u: Tensor
    item_uk: Tensor
    score_uk: Tensor
    weight_uM: Tensor | None


@dataclass(frozen=True)
class Ranking:
    """How to rank: a scorer, the items that are left out, the length of a list and how many users go at once."""

    score: Scorer
    seen: list[Seen]
    k: int
    block: int

    def blocks(self, users: Tensor) -> Iterator[Block]:
        """Every user's list, block by block."""
        for user_u in users.split(self.block):
            score_uI, weight_uM = self.score(user_u)
            for seen in self.seen:
                mask_seen(score_uI, user_u, seen)
            yield Block(user_u, *top_k(score_uI, self.k), weight_uM)


def hits(item_uk: Tensor, user_u: Tensor, relevant: Seen) -> Tensor:
    """bool [u, k]: which of the listed items are relevant."""
    low, count = relevant.bounds[user_u], relevant.count(user_u)
    row = torch.repeat_interleave(torch.arange(len(user_u), device=user_u.device), count)
    offset = torch.arange(len(row), device=user_u.device) - (count.cumsum(0) - count)[row]
    stride = 1 << 32
    keys = row * stride + relevant.item[low[row] + offset]
    wanted = torch.arange(len(user_u), device=user_u.device)[:, None] * stride + item_uk
    if not len(keys):
        return torch.zeros_like(item_uk, dtype=torch.bool)
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return keys[at] == wanted


def per_user(hit_uk: Tensor, relevant_u: Tensor, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """Metrics of every user, float64 [u], at every K.

    precision, recall, hit; mrr of the first hit; ndcg divides by the ideal DCG of min(relevant, K) items;
    ndcg_hits by that of the number of hits, as InvRL's published code does.
    """
    hit = hit_uk.double()
    place = torch.arange(hit.shape[1], device=hit.device, dtype=torch.float64)
    discount = 1 / torch.log2(place + 2)
    ideal = torch.cat([torch.zeros(1, dtype=torch.float64, device=hit.device), discount.cumsum(0)])
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


@dataclass
class Metrics:
    """Sums over users, which add up across workers. `listed`: per K, how often each item was recommended [I].

    Where `cold_I` marks items, sums named `/cold` count only those among the held-out items, over `cold_users` who
    have one.
    """

    sums: dict[str, float]
    users: int
    listed: dict[int, Tensor]
    cold_I: Tensor | None = None
    cold_users: int = 0

    def means(self) -> dict[str, float]:
        """Means over users with at least one relevant item; coverage: share of the catalogue ever listed.

        The `/cold` ones are left out where no user has a held-out cold item.
        """
        out = {}
        for name, total in self.sums.items():
            users = self.cold_users if name.endswith("/cold") else self.users
            if users or not name.endswith("/cold"):
                out[name] = total / max(users, 1)
        for k, count_I in self.listed.items():
            out[f"coverage@{k}"] = float((count_I > 0).double().mean())
            if self.cold_I is not None and self.cold_users:
                out[f"coverage@{k}/cold"] = float((count_I[self.cold_I] > 0).double().mean())
        return out


@dataclass(frozen=True)
class Judged:
    """What lists are held against: relevant items, the K of the metrics and, bool [I], items without training data."""

    relevant: Seen
    n_items: int
    ks: tuple[int, ...]
    cold_I: Tensor | None = None

    @functools.cached_property
    def cold(self) -> Seen | None:
        """The relevant items that are cold."""
        return None if self.cold_I is None else self.relevant.only(self.cold_I)


def evaluate(
    ranking: Ranking, users: Tensor, judged: Judged, keep: bool = False
) -> tuple[Metrics, dict[str, np.ndarray]]:
    """Rank the catalogue for `users` and add up their metrics; users without a relevant item are left out.

    With `keep` also returns every user's metrics and fusion weights: {"user": int64 [n], name: float64 [n]}. `/cold`
    metrics count only cold items as relevant; the ranking is the same, of the whole catalogue.
    """
    relevant, cold, cold_I, k = judged.relevant, judged.cold, judged.cold_I, max(judged.ks)
    users = users[relevant.count(users) > 0]
    listed = {k: torch.zeros(judged.n_items, dtype=torch.int64, device=users.device) for k in judged.ks}
    total = Metrics({}, 0, listed, cold_I)
    kept: list[dict[str, Tensor]] = []
    for user_u, item_uk, hit_uk, weight_uM in _gathered(ranking.blocks(users), relevant):
        values = per_user(hit_uk, relevant.count(user_u), judged.ks)
        for name, value_u in values.items():
            total.sums[name] = total.sums.get(name, 0.0) + float(value_u.sum())
        if cold is not None and cold_I is not None:
            count_u = cold.count(user_u)
            has_u = count_u > 0
            for name, value_v in per_user((hit_uk & cold_I[item_uk])[has_u], count_u[has_u], judged.ks).items():
                total.sums[f"{name}/cold"] = total.sums.get(f"{name}/cold", 0.0) + float(value_v.sum())
            total.cold_users += int(has_u.sum())
        if weight_uM is not None:
            weights = {f"fusion weight {m}": weight_u for m, weight_u in enumerate(weight_uM.double().T)}
            for name, weight_u in weights.items():
                total.sums[name] = total.sums.get(name, 0.0) + float(weight_u.sum())
            values |= weights
        for at in judged.ks:
            total.listed[at] += torch.bincount(item_uk[:, :at].flatten(), minlength=judged.n_items)
        total.users += len(user_u)
        if keep:
            kept.append({"user": user_u, **values})
    if not total.sums:
        names = list(per_user(torch.zeros(1, k), torch.ones(1, dtype=torch.int64), judged.ks))
        total.sums = dict.fromkeys(names + [f"{name}/cold" for name in names if cold is not None], 0.0)
    table = {name: torch.cat([part[name] for part in kept]).cpu().numpy() for name in kept[0]} if kept else {}
    return total, table


Hits = tuple[Tensor, Tensor, Tensor, Tensor | None]  # users [u], items [u, k], hits [u, k], fusion weights [u, M]


def _gathered(blocks: Iterator[Block], relevant: Seen) -> Iterator[Hits]:
    """Many blocks together, with their hits: metrics are many small operations."""
    parts: list[Block] = []
    count = 0
    for block in blocks:
        parts.append(block)
        count += len(block.user_u)
        if count >= _TOGETHER:
            yield _with_hits(parts, relevant)
            parts, count = [], 0
    if parts:
        yield _with_hits(parts, relevant)


def _with_hits(parts: list[Block], relevant: Seen) -> Hits:
    user_u, item_uk = torch.cat([part.user_u for part in parts]), torch.cat([part.item_uk for part in parts])
    score_uk = torch.cat([part.score_uk for part in parts])
    weights = [part.weight_uM for part in parts if part.weight_uM is not None]
    hit_uk = hits(item_uk, user_u, relevant) & (score_uk > float("-inf"))
    return user_u, item_uk, hit_uk, torch.cat(weights) if weights else None
