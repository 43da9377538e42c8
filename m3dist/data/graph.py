"""Graphs of the training interactions, sparse from end to end.

Shapes: U users, I items, k neighbours.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def user_item(user: np.ndarray, item: np.ndarray, n_users: int, n_items: int) -> sp.csr_matrix:
    """The binary interaction matrix [U, I], float32."""
    data = np.ones(len(user), dtype=np.float32)
    return sp.csr_matrix((data, (user, item)), shape=(n_users, n_items))


def item_neighbours(
    user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, k: int, block: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """UltraGCN's item-item neighbours (Mao et al. 2021, eq. 12-14): int64 [I, k] and omega float32 [I, k].

    G = A^T A; omega_ij = G_ij / (g_i - G_ii) sqrt(g_i / g_j) with g the row sums of G; the k largest omega of each
    item, itself left out, ties to the smaller id. Items with fewer neighbours are filled with themselves at omega 0.
    Rows of G are made in blocks, so memory is bounded by a block's non-zeros, never I x I.
    """
    matrix = user_item(user, item, n_users, n_items).astype(np.float64)
    transposed = matrix.T.tocsr()
    per_user = np.asarray(matrix.sum(axis=1)).ravel()
    g = transposed @ per_user
    neighbour = np.repeat(np.arange(n_items)[:, None], k, axis=1)
    omega = np.zeros((n_items, k), dtype=np.float32)
    for start in range(0, n_items, block):
        rows = (transposed[start : start + block] @ matrix).tocoo()
        item_i, item_j, shared = rows.row + start, rows.col, rows.data
        own = item_i == item_j
        rest = g.copy()
        rest[item_i[own]] -= shared[own]
        item_i, item_j, shared = item_i[~own], item_j[~own], shared[~own]
        weight = shared / rest[item_i] * np.sqrt(g[item_i] / g[item_j])
        best = np.lexsort((item_j, -weight, item_i))
        item_i, item_j, weight = item_i[best], item_j[best], weight[best]
        rank = np.arange(len(item_i)) - np.searchsorted(item_i, item_i)
        kept = rank < k
        neighbour[item_i[kept], rank[kept]] = item_j[kept]
        omega[item_i[kept], rank[kept]] = weight[kept]
    return neighbour, omega
