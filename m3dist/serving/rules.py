"""What may be listed, and what is listed first: candidates, exclusions, boosts, diversity and a hook of one's own.

Shapes: u users of a block, I items, k list length, p items of a pool, w content width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from m3dist.evaluation.ranking import Block, Mask, Seen, Users
from m3dist.serving.catalogue import Catalogue, typed

Items = Iterable[Any] | Mapping[Any, Iterable[Any]]  # for everybody, or by user
Hook = Callable[[list[Any], Tensor], Tensor]
POOL = 5  # items that a diverse list is chosen from, for each place


@dataclass(frozen=True)
class Rules:
    """What a recommendation may hold. Ids are the data set's own.

    candidates: the only items to rank, for everybody or by user; a user without any gets no list. exclude: items that
    are left out, likewise. include_seen: items of a user's history are ranked too. only_new: only items without
    training interactions. boosts: numbers that are added to items' scores. diverse: from 0 to 1, how much of an item's
    place is its unlikeness to the items above it instead of its score (maximal marginal relevance of Carbonell and
    Goldstein, SIGIR 1998, over content). hook: a function of users' ids and their scores [u, I], in the order of
    `run.catalogue.ids` and -inf where an item may not be listed, that returns the scores to rank by. skip_unknown:
    leave out items that the run does not have; otherwise they are an error.
    """

    candidates: Items | None = None
    exclude: Items = ()
    include_seen: bool = False
    only_new: bool = False
    boosts: Mapping[Any, float] = field(default_factory=dict)
    diverse: float = 0.0
    hook: Hook | None = None
    skip_unknown: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.diverse <= 1:
            raise ValueError(f"diverse: expected a number from 0 to 1, got {self.diverse:g}")


class Applied:
    """Rules in terms of one catalogue and the users of one call: an `evaluation.ranking.Adjust`.

    user_ids: of the users, by place.
    """

    def __init__(self, rules: Rules, catalogue: Catalogue, user_ids: pa.Array | pa.ChunkedArray):
        self.rules, self.user_ids = rules, user_ids
        self.hidden_I = torch.zeros_like(catalogue.trained_I)
        if rules.only_new:
            self.hidden_I |= catalogue.trained_I
        self.only, self.without = None, None
        skip = rules.skip_unknown
        if isinstance(rules.candidates, Mapping):
            self.only = _by_user(rules.candidates, catalogue, user_ids, ("candidates", skip))
        elif rules.candidates is not None:
            self.hidden_I |= ~catalogue.mark(rules.candidates, "candidates", skip)
        if isinstance(rules.exclude, Mapping):
            self.without = _by_user(rules.exclude, catalogue, user_ids, ("exclude", skip))
        elif excluded := list(rules.exclude):
            self.hidden_I |= catalogue.mark(excluded, "exclude", skip)
        self.boost_I = None
        if rules.boosts:
            at = catalogue.places(rules.boosts, "boosts", skip)
            value = np.array([float(x) for x in rules.boosts.values()], dtype=np.float32)
            if not np.isfinite(value).all():
                raise ValueError(f"boosts: expected numbers, got {value[~np.isfinite(value)][0]}")
            boost_I = torch.zeros(len(catalogue))
            boost_I[torch.from_numpy(at[at >= 0])] = torch.from_numpy(value[at >= 0])
            self.boost_I = boost_I.to(catalogue.trained_I.device)

    def __call__(self, users: Users, score_uI: Tensor) -> Tensor:
        """Scores to rank by; overwrites those given."""
        n_items = score_uI.shape[1]
        if self.boost_I is not None:
            score_uI += self.boost_I
        score_uI.masked_fill_(self.hidden_I, float("-inf"))
        if self.only is not None:
            kept = Mask([self.only], users, n_items)(torch.zeros_like(score_uI), 1.0)
            score_uI.masked_fill_(kept == 0, float("-inf"))
        if self.without is not None:
            score_uI = Mask([self.without], users, n_items)(score_uI)
        if self.rules.hook is not None:
            shape = score_uI.shape
            score_uI = self.rules.hook(self.user_ids.take(pa.array(users.here)).to_pylist(), score_uI)
            if not isinstance(score_uI, Tensor) or score_uI.shape != shape:
                raise ValueError(f"hook: expected it to return scores of shape {list(shape)}")
        return score_uI


def _by_user(items: Mapping, catalogue: Catalogue, user_ids: pa.Array, named: tuple[str, bool]) -> Seen:
    """Every user's items; of users who are not in this call none."""
    source, skip = named
    given = [list(one) for one in items.values()]
    count = [len(one) for one in given]
    at = catalogue.places([item for one in given for item in one], source, skip)
    who = pc.index_in(typed(list(items), user_ids.type), value_set=user_ids).fill_null(-1).to_numpy()
    user = np.repeat(who, count).astype(np.int64)
    kept = (user >= 0) & (at >= 0)
    return Seen.distinct((user[kept], at[kept]), (len(user_ids), len(catalogue)), catalogue.trained_I.device)


def diversified(block: Block, content_Iw: Tensor, weight: float, k: int) -> Block:
    """The k items of each list, of those given, that are best by turns of score and of unlikeness to those before.

    Scores are scaled to 0 ... 1 within a list; likeness is the cosine of content. Lists keep the items' scores.
    """
    item_up, score_up = block.item_uk, block.score_uk
    there_up = score_up > float("-inf")
    low_u1 = score_up.masked_fill(~there_up, float("inf")).amin(1, keepdim=True)
    relevance_up = (score_up - low_u1) / (score_up.amax(1, keepdim=True) - low_u1).clamp(min=1e-12)
    row_upw, worst_up = content_Iw[item_up], torch.zeros_like(score_up)
    taken_up, chosen = torch.zeros_like(there_up), []
    for _ in range(min(k, item_up.shape[1])):
        value_up = ((1 - weight) * relevance_up - weight * worst_up).masked_fill(~there_up, -1e9)
        at_u1 = value_up.masked_fill(taken_up, float("-inf")).argmax(1, keepdim=True)
        taken_up.scatter_(1, at_u1, True)
        chosen.append(at_u1)
        last_uw1 = row_upw.gather(1, at_u1.unsqueeze(2).expand(-1, -1, row_upw.shape[2])).transpose(1, 2)
        like_up = torch.bmm(row_upw, last_uw1).squeeze(2)
        worst_up = torch.maximum(worst_up, like_up) if len(chosen) > 1 else like_up
    at_uk = torch.cat(chosen, dim=1)
    return block._replace(item_uk=item_up.gather(1, at_uk), score_uk=score_up.gather(1, at_uk))
