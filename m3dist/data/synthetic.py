"""Data with planted invariant and spurious dimensions, whose truth is saved.

Every modality has `invariant` dimensions that cause interactions, through users' tastes, in all environments, and
`spurious` ones that exposure leans on, nearly alike for all users, by a strength that differs between environments,
is 0 in the validation split (which is shifted, too, so that it can select) and flips its sign in the test split. Each
training interaction comes from one latent environment.

    P(i | u, e) proportional to exp(taste_u . c_i + strength_e lean_u . s_i)

Shapes: U users, I items.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from m3dist.config import Synthetic
from m3dist.data.writer import Writer
from m3dist.seeding import numpy_rng


def write(dst: str | Path, config: Synthetic, seed: int) -> dict[str, Any]:
    """Plant a data set at `dst`; 80 / 10 / 10 % of every user's interactions are train / val / test."""
    rng = numpy_rng(seed, "synthetic")
    U, I, M = config.users, config.items, config.modalities
    causal = rng.standard_normal((I, M * config.invariant))
    spurious = rng.standard_normal((I, M * config.spurious))
    taste = rng.standard_normal((U, M * config.invariant)) * (3.0 / np.sqrt(M * config.invariant))
    shared = rng.choice([-1.0, 1.0], M * config.spurious)  # what is being shown around, to everybody
    lean = (shared + 0.3 * rng.standard_normal((U, M * config.spurious))) / np.sqrt(M * config.spurious)
    strength = np.linspace(2.5, -1.0, config.environments) if config.environments > 1 else np.array([0.75])
    if config.interactions * 2 > I:
        raise ValueError(f"synthetic.interactions: {config.interactions} per user need at least twice as many items")
    base, pull = taste @ causal.T, lean @ spurious.T
    taken = np.zeros((U, I), dtype=bool)
    held = max(1, config.interactions // 10)
    train = max(1, config.interactions - 2 * held)

    def draw(strength_U: np.ndarray, count: int) -> np.ndarray:
        """`count` new items per user by Gumbel top-k, one environment a user and draw."""
        noise = rng.gumbel(size=(U, I))
        value = np.where(taken, -np.inf, base + strength_U[:, None] * pull + noise)
        chosen = np.argpartition(-value, count, axis=1)[:, :count]
        np.put_along_axis(taken, chosen, True, axis=1)
        return chosen

    environments = len(strength)
    parts = [draw(np.full(U, s), train // environments + (e < train % environments)) for e, s in enumerate(strength)]
    splits = {"train": np.concatenate(parts, axis=1)}
    splits["val"] = draw(np.zeros(U), held)
    splits["test"] = draw(np.full(U, -float(strength.max())), held)
    with Writer(dst) as out:
        for m in range(M):
            inner = causal[:, m * config.invariant : (m + 1) * config.invariant]
            outer = spurious[:, m * config.spurious : (m + 1) * config.spurious]
            name = f"modality{m}"
            out.features(name, np.concatenate([inner, outer], axis=1).astype(np.float32))
            out.truth(name, np.arange(config.invariant + config.spurious) < config.invariant)
        pairs = {
            s: (np.repeat(np.arange(U, dtype=np.int32), x.shape[1]), x.ravel().astype(np.int32))
            for s, x in splits.items()
        }
        out.interactions(U, I, pairs)
        return out.finish(provenance={"format": "synthetic", "seed": seed, **config.model_dump()})
