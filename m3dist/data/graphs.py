"""Graphs of the training interactions, sparse from end to end.

Shapes: U users, I items, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp


def user_item(user: np.ndarray, item: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """The binary interaction matrix [U, I], float32."""
    data = np.ones(len(user), dtype=np.float32)
    return sp.csr_matrix((data, (user, item)), shape=shape)


def item_neighbours(
    user: np.ndarray, item: np.ndarray, shape: tuple[int, int], k: int, block: int = 1 << 20
) -> tuple[np.ndarray, np.ndarray]:
    """UltraGCN's item-item neighbours (Mao et al. 2021, eq. 12-14): int64 [I, k] and omega float32 [I, k].

    shape: users and items of the data set, (U, I).
    G = A^T A; omega_ij = G_ij / (g_i - G_ii) sqrt(g_i / g_j) with g the row sums of G; the k largest omega of each
    item, itself left out, ties to the smaller id. Items with fewer neighbours are filled with themselves at omega 0.
    Rows of G are made in blocks of at most `block` non-zeros (or one row), so memory never grows as I x I.
    """
    n_items = shape[1]
    matrix = user_item(user, item, shape).astype(np.float64)
    transposed = matrix.T.tocsr()
    g = transposed @ np.asarray(matrix.sum(axis=1)).ravel()
    rest = g - transposed.sum(axis=1).A1
    neighbour = np.repeat(np.arange(n_items)[:, None], k, axis=1)
    omega = np.zeros((n_items, k), dtype=np.float32)
    for start, end in _cut(g, block):
        rows = (transposed[start:end] @ matrix).tocoo()
        item_i, item_j, shared = rows.row + start, rows.col, rows.data
        other = item_i != item_j
        item_i, item_j, shared = item_i[other], item_j[other], shared[other]
        weight = shared / rest[item_i] * np.sqrt(g[item_i] / g[item_j])
        best = np.lexsort((item_j, -weight, item_i))
        item_i, item_j, weight = item_i[best], item_j[best], weight[best]
        rank = np.arange(len(item_i)) - np.searchsorted(item_i, item_i)
        kept = rank < k
        neighbour[item_i[kept], rank[kept]] = item_j[kept]
        omega[item_i[kept], rank[kept]] = weight[kept]
    return neighbour, omega


def _cut(size: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose sizes add up to at most `most`; a larger row stands alone."""
    total, start = np.cumsum(size), 0
    while start < len(size):
        before = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, before + most, side="right")))
        yield start, end
        start = end
