"""A graph small enough to work out by hand, batches of it, and popularity as the one to beat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_runs import popularity
from torch import Tensor

from m3dist.config import validate
from m3dist.data.dataset import Dataset
from m3dist.data.draws import mix
from m3dist.method.recommender import BaselineTask
from m3dist.models.base import Batch, Given, Recommender
from m3dist.training.context import Context

PAIRS = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 2), (2, 3), (3, 4)]  # 4 users, 5 items


def tiny(widths: tuple[int, ...] = (3, 2), seed: int = 0) -> Given:
    rng = torch.Generator().manual_seed(seed)
    user, item = torch.tensor(PAIRS).T
    return Given(4, 5, [torch.randn(5, w, generator=rng) for w in widths], user, item)


def made(kind: type[Recommender], given: Given, **values: Any) -> Recommender:
    """A recommender with these values of its settings."""
    return kind(given, kind.Options(**values))


def adjacency() -> np.ndarray:
    """[U + I, U + I], float64."""
    A = np.zeros((9, 9))
    for u, i in PAIRS:
        A[u, 4 + i] = A[4 + i, u] = 1
    return A


def randomise(model: Recommender, seed: int = 1) -> dict[str, np.ndarray]:
    """Give every parameter a random value, and return them in float64."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.5)
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def linear(p: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def leaky(x: np.ndarray, slope: float = 0.01) -> np.ndarray:
    return np.where(x > 0, x, slope * x)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def batch_of(users: list[int], items: list[int], negatives: Any, parts: tuple[int, int] | None = None) -> Batch:
    """A step's samples, or those of them that a worker has; its random numbers are always the same."""
    user, item, negative = (torch.tensor(x) for x in (users, items, negatives))
    mine = slice(*(parts or (0, len(users))))
    own = negative[mine] if negative.ndim == 2 else negative
    return Batch(user[mine], item[mine], own, len(users), mix(torch.arange(1, 5)))


def scores(model: Recommender) -> Tensor:
    """Of all users and items, [U, I]."""
    with torch.no_grad():
        return model.score(model.tensors(), torch.arange(model.n_users))


def trained(root: Path, model: str, epochs: int, **baseline: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Validation metrics of `model` after some epochs on a data set, and popularity's."""
    section = {"dim": 16, "batch_size": 512, "lr": 0.02, "negatives": 64, "l2": 1e-3, **baseline}
    config = validate({"model": model, "data": str(root), "baseline": section})
    context = Context(Dataset(root), config)
    task = BaselineTask(context)
    for epoch in range(epochs):
        task.draws.seek(epoch, 0)
        for _ in range(task.draws.steps):
            task.step()
            task.draws.advance()
    return task.evaluate(), popularity(context.dataset, config)
