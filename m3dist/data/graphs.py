"""Graphs of the training interactions, sparse from end to end.

Shapes: U users, I items, n interactions, k neighbours, r rows of a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sp
import torch

from m3dist.data.draws import mix

_BLOCK = 1 << 20  # non-zeros of G at once
_PART = 1 << 26  # and of all rows that one call finds
Pairs = tuple[np.ndarray, np.ndarray]  # users and items, [n] each
Neighbours = tuple[np.ndarray, np.ndarray]  # ids int32 [r, k] and omega float32 [r, k]


def user_item(user: np.ndarray, item: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """The binary interaction matrix [U, I], float32."""
    data = np.ones(len(user), dtype=np.float32)
    return sp.csr_matrix((data, (user, item)), shape=shape)


def capped(pairs: Pairs, most: int) -> Pairs:
    """The interactions without what users have beyond `most` of them: those whose hash of (user, item) is smallest
    stay, whatever the order of the interactions."""
    user, item = pairs
    count = np.bincount(user)
    if not len(user) or count.max() <= most:
        return pairs
    above = np.flatnonzero(count[user] > most)
    hash_ = mix((torch.from_numpy(user[above].astype(np.int64)) << 32) + torch.from_numpy(item[above])).numpy()
    by_user = np.lexsort((hash_, user[above]))
    sorted_ = user[above][by_user]
    rank = np.arange(len(sorted_)) - np.searchsorted(sorted_, sorted_)
    kept = np.ones(len(user), dtype=bool)
    kept[above[by_user[rank >= most]]] = False
    return user[kept], item[kept]


class ItemGraph:
    """UltraGCN's item-item graph (Mao et al. 2021, eq. 12-14), whose rows are found on demand.

    G = A^T A of the interactions A [U, I]; omega_ij = G_ij / (g_i - G_ii) sqrt(g_i / g_j) with g the row sums of G.
    Rows depend on the interactions alone, so that whoever finds them finds the same bits. shape: (U, I).
    """

    def __init__(self, pairs: Pairs, shape: tuple[int, int], k: int):
        user, item = pairs
        self.n_items, self.k = shape[1], k
        ones = np.ones(len(user), dtype=np.int32)  # numbers of users in whole numbers
        self._by_user = sp.csr_matrix((ones, (user, item)), shape=shape)
        self._by_item = self._by_user.T.tocsr()
        self._g = _row_sums(pairs, shape)
        self._rest = self._g - np.diff(self._by_item.indptr)

    def rows(self, low: int, high: int, block: int = _BLOCK) -> Neighbours:
        """The k largest omega of each item of a range, itself left out, ties to the smaller id.

        Items with fewer neighbours are filled with themselves at omega 0. Rows of G are made in blocks of at most
        `block` non-zeros (or one row), so memory never grows as I x I.
        """
        neighbour = np.repeat(np.arange(low, high, dtype=np.int32)[:, None], self.k, axis=1)
        omega = np.zeros((high - low, self.k), dtype=np.float32)
        for start, end in _cut(self._g[low:high], block):
            found = (self._by_item[low + start : low + end] @ self._by_user).tocoo()
            item_i, item_j, shared = found.row + start, found.col, found.data
            other = item_i + low != item_j
            item_i, item_j, shared = item_i[other], item_j[other], shared[other]
            weight = shared / self._rest[item_i + low] * np.sqrt(self._g[item_i + low] / self._g[item_j])
            best = np.lexsort((item_j, -weight, item_i))
            item_i, item_j, weight = item_i[best], item_j[best], weight[best]
            rank = np.arange(len(item_i)) - np.searchsorted(item_i, item_i)
            kept = rank < self.k
            neighbour[item_i[kept], rank[kept]] = item_j[kept]
            omega[item_i[kept], rank[kept]] = weight[kept]
        return neighbour, omega


def parts(pairs: Pairs, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Ranges of items whose rows of the item-item graph cost about as much to find."""
    return [*_cut(_row_sums(pairs, shape), _PART)]


def joined(found: Iterable[Neighbours], n_items: int) -> Neighbours:
    """The rows of all `parts` below each other, and behind them one of no item, which holds itself at omega 0."""
    neighbour, omega = zip(*found, strict=True)
    k = neighbour[0].shape[1]
    nothing = np.full((1, k), n_items, dtype=np.int32), np.zeros((1, k), dtype=np.float32)
    return np.concatenate([*neighbour, nothing[0]]), np.concatenate([*omega, nothing[1]])


def item_neighbours(pairs: Pairs, shape: tuple[int, int], k: int) -> Neighbours:
    """Neighbours of every item by id, and of none in a row behind: int32 [I + 1, k] and omega float32 [I + 1, k]."""
    graph = ItemGraph(pairs, shape, k)
    return joined((graph.rows(*part) for part in parts(pairs, shape)), shape[1])


def _row_sums(pairs: Pairs, shape: tuple[int, int]) -> np.ndarray:
    """g: of every item the interactions of all its users, float64 [I]."""
    user, item = pairs
    return np.bincount(item, weights=np.bincount(user, minlength=shape[0])[user], minlength=shape[1])


def _cut(size: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose sizes add up to at most `most`; a larger row stands alone."""
    total, start = np.cumsum(size), 0
    while start < len(size):
        before = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, before + most, side="right")))
        yield start, end
        start = end
