"""Item-item neighbours against a dense computation."""

from __future__ import annotations

import numpy as np

from m3dist.data.graphs import item_neighbours


def test_item_neighbours_against_a_dense_computation() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((30, 12)) < 0.3
    user, item = np.nonzero(dense)
    neighbour, omega = item_neighbours(user, item, (30, 12), 4, block=40)
    G = dense.T.astype(float) @ dense
    g = G.sum(1)
    full = G / (g - np.diag(G))[:, None] * np.sqrt(g[:, None] / g[None, :])
    np.fill_diagonal(full, -1)
    for i in range(12):
        best = np.lexsort((np.arange(12), -full[i]))[:4]
        np.testing.assert_allclose(omega[i], full[i, best], rtol=1e-6)
        np.testing.assert_allclose(full[i, neighbour[i]], full[i, best], rtol=1e-12)
