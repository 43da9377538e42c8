"""Lists of the best items of users, block by block: memory is bounded by one block of scores.

What users have seen lies on the device; how much of it a block needs is known on the host, so that no operation waits
to learn the size of its output.

Shapes: U users, u of a block, I items, n pairs of a split, k list length, M recommenders of a fusion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m3dist.data.arrays import shared
from m3dist.evaluation.topk import top_k

_STRIDE = 1 << 32  # above all item ids


class Users(NamedTuple):
    """Ids of some users, int64, on the host and on the device."""

    here: np.ndarray
    there_u: Tensor

    @staticmethod
    def of(ids: np.ndarray, device: torch.device | str) -> Users:
        return Users(ids, torch.from_numpy(ids).to(device))

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.here)

    def blocks(self, size: int) -> Iterator[Users]:
        """Consecutive ones of `size` users, the last of what remains; of no users one without any, so that whoever adds
        blocks up finds the same names in them."""
        for start in range(0, max(len(self.here), 1), size):
            yield Users(self.here[start : start + size], self.there_u[start : start + size])


@dataclass(frozen=True)
class Seen:
    """Items of each of U consecutive users in ascending order, as a CSR pair: bounds int64 [U + 1], also on the host,
    and item [n], int32 or int64. low: the first of the users."""

    bounds: Tensor
    item: Tensor
    here: np.ndarray
    low: int = 0

    @staticmethod
    def of(
        pairs: tuple[np.ndarray, np.ndarray], n_users: int, device: str | torch.device = "cpu", low: int = 0
    ) -> Seen:
        """Of (user, item) pairs; those of a prepared split are in order already and are neither sorted nor copied."""
        user, item = pairs
        if not _in_order(user, item):
            order = np.lexsort((item, user))
            user, item = user[order], item[order]
        bounds = np.searchsorted(user, np.arange(low, low + n_users + 1, dtype=user.dtype)).astype(np.int64)
        return Seen(torch.from_numpy(bounds).to(device), shared(item).to(device), bounds, low)

    @staticmethod
    def distinct(
        pairs: tuple[np.ndarray, np.ndarray], shape: tuple[int, int], device: str | torch.device = "cpu"
    ) -> Seen:
        """Of int64 (user, item) pairs of so many users and items, each pair once however often it stands there."""
        user, item = pairs
        row, column = np.divmod(np.unique(user * shape[1] + item), shape[1])
        return Seen.of((row, column), shape[0], device)

    def only(self, kept_I: np.ndarray) -> Seen:
        """The same users, with the items that `kept_I`, bool [I], marks."""
        item = self.item.cpu().numpy()
        user = np.repeat(np.arange(self.low, self.low + len(self.here) - 1), np.diff(self.here))
        kept = kept_I[item]
        return Seen.of((user[kept], item[kept]), len(self.here) - 1, self.item.device, self.low)

    @functools.cached_property
    def _keys(self) -> Tensor:
        """Of every pair, ascending."""
        user = torch.repeat_interleave(self.bounds.diff(), output_size=len(self.item))
        return (user + self.low) * _STRIDE + self.item

    def hold(self, users: Users, item_uk: Tensor) -> Tensor:
        """bool [u, k]: which of these items are among their user's."""
        if not len(self.item):
            return torch.zeros_like(item_uk, dtype=torch.bool)
        wanted_uk = users.there_u.unsqueeze(1) * _STRIDE + item_uk
        at_uk = torch.searchsorted(self._keys, wanted_uk).clamp_(max=len(self.item) - 1)
        return self._keys[at_uk] == wanted_uk

    def count(self, users: Users) -> Tensor:
        """How many each user has, [u]."""
        at_u = self._at(users)
        return self.bounds[at_u + 1] - self.bounds[at_u]

    def _at(self, users: Users) -> Tensor:
        """Where these users stand in `bounds`, [u]."""
        return users.there_u - self.low if self.low else users.there_u

    def count_here(self, ids: np.ndarray) -> np.ndarray:
        """The same on the host, of users by their ids."""
        return self.here[ids - self.low + 1] - self.here[ids - self.low]

    def rows(self, users: Users) -> tuple[Tensor, Tensor]:
        """(row, item) of all that these users have, row by row: who has it, and what."""
        total = int(self.count_here(users.here).sum())
        count_u = self.count(users)
        row = torch.repeat_interleave(count_u, output_size=total)
        first = self.bounds[self._at(users)] - (count_u.cumsum(0) - count_u)
        return row, self.item[first[row] + torch.arange(total, device=row.device)].long()


def _in_order(user: np.ndarray, item: np.ndarray, block: int = 1 << 20) -> bool:
    """Whether pairs are sorted by user and item."""
    for start in range(0, len(user), block):
        u, i = (x[start : start + block + 1] for x in (user, item))
        if not ((u[1:] > u[:-1]) | ((u[1:] == u[:-1]) & (i[1:] >= i[:-1]))).all():
            return False
    return True


class Mask:
    """Where a block's users have seen items. spares: scores are left as they are, and copies of them masked."""

    def __init__(self, seen: list[Seen], users: Users, n_items: int, spares: bool = False):
        parts = [row * n_items + item for row, item in (one.rows(users) for one in seen)]
        self.flat = torch.cat(parts) if parts else None
        self.spares = spares

    def __call__(self, score_uI: Tensor, value: float = float("-inf")) -> Tensor:
        """Scores with these places set, in place unless it spares them."""
        if self.flat is None:
            return score_uI
        score_uI = score_uI.clone() if self.spares else score_uI
        score_uI.view(-1).index_fill_(0, self.flat, value)
        return score_uI


# users [u] and where their scores will be masked -> scores [u, I], which may be overwritten until the next call, and
# where the scorer is a fusion of M recommenders their weights [u, M]
Scorer = Callable[[Tensor, Mask], tuple[Tensor, Tensor | None]]


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

    An item that may not be listed has score -inf. scores: of all items, [u, I], until the next block.
    """

    users: Users
    item_uk: Tensor
    score_uk: Tensor
    weight_uM: Tensor | None
    scores: Tensor


# users [u] and their scores [u, I], -inf where an item may not be listed -> scores that are ranked instead
Adjust = Callable[[Users, Tensor], Tensor]


@dataclass(frozen=True)
class Ranking:
    """How to rank: a scorer, the items that are left out, the length of a list, and how many users go at once.

    lists_seen: what users have seen is listed too; a fusion weighs its members as if it were not. adjust: changes
    scores before lists are made.
    """

    score: Scorer
    seen: list[Seen]
    n_items: int
    k: int
    block: int
    lists_seen: bool = False
    adjust: Adjust | None = None

    def blocks(self, users: Users) -> Iterator[Block]:
        """Every user's list, block by block."""
        for some in users.blocks(self.block):
            mask = Mask(self.seen, some, self.n_items, self.lists_seen)
            score_uI, weight_uM = self.score(some.there_u, mask)
            score_uI = score_uI if self.lists_seen else mask(score_uI)
            score_uI = score_uI if self.adjust is None else self.adjust(some, score_uI)
            item_uk, score_uk = top_k(score_uI, self.k)
            yield Block(some, item_uk, score_uk, weight_uM, score_uI)


def block_size(setting: int | str, n_items: int, device: torch.device) -> int:
    """Users that are ranked at once: what was set, or with `auto` 256 on a CPU, whose scores stay in cache, and on a
    GPU as many as a quarter of its free memory holds the scores of, at most 8,192."""
    if isinstance(setting, int):
        return setting
    if device.type != "cuda":
        return 256
    free = torch.cuda.mem_get_info(device)[0] // 4
    return int(min(8192, max(256, free // (12 * n_items))))
