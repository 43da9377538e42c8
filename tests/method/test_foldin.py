"""Users' rows that are found from histories, against what training makes small and against trained rows.

Shapes: U users, I items, k width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import trained
from torch import Tensor

import m3dist
from m3dist.config import Backbone, ResolvedBackbone
from m3dist.data.graphs import item_neighbours
from m3dist.evaluation.ranking import Seen
from m3dist.losses import logistic
from m3dist.losses.logistic import Coefficients, Samples
from m3dist.losses.softmax import softmax
from m3dist.method.foldin import FoldIn
from m3dist.method.fused import Fused
from m3dist.models.ultragcn import Weights

I, D = 40, 6
OF_LOSS: dict[str, dict[str, Any]] = {
    "softmax": {"negatives": I, "kappa": 0.5},
    "ultragcn": {"kappa": 0.5, "nu": 9.0, "content_l2": 0.01, "neighbours": 3},
}
HISTORIES = [[3, 5, 9, 31], [], [0], [*range(0, 20)]]


def world(loss: str) -> tuple[ResolvedBackbone, Weights, list[Tensor]]:
    """A backbone, weights of random interactions, and two members' items, 2 columns of which are content."""
    rng = np.random.default_rng(3)
    user, item = np.nonzero(rng.random((30, I)) < 0.3)
    backbone = Backbone(loss=loss, dim=D - 2, content_dim=2, **OF_LOSS[loss]).resolved
    near = tuple(map(torch.from_numpy, item_neighbours((user, item), (30, I), 3))) if backbone.nu else None
    degrees = (torch.from_numpy(np.bincount(user, minlength=30)), torch.from_numpy(np.bincount(item, minlength=I)))
    weights = Weights(degrees, (1.0, 1.0, 1.0, 1.0), backbone.kappa, near)  # type: ignore[arg-type]
    items = [torch.from_numpy(rng.standard_normal((I, D)).astype(np.float32)) for _ in range(2)]
    for x in items:
        x[:20, 0] += 2  # the first half of the items are alike
    return backbone, weights, [F.normalize(x, dim=1) if loss == "softmax" else x for x in items]


def histories(rows: list[list[int]]) -> Seen:
    user = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return Seen.of((user, np.array([x for row in rows for x in row], dtype=np.int64)), len(rows))


def found(loss: str, rows: list[list[int]]) -> Tensor:
    backbone, weights, items = world(loss)
    return FoldIn(backbone, weights, items, torch.full((2, D), 0.5), None).rows(histories(rows))


def training_gradient(loss: str, row_k: Tensor, m: int, history: list[int]) -> Tensor:
    """Of the loss of training, with its L2, for one user whose negatives are all items."""
    backbone, weights, items = world(loss)
    n, near = len(history), None
    at = torch.tensor(history)
    factor = (n + 1) ** 0.5 / n
    ids, omega = [at, torch.arange(I)], None
    if backbone.nu:
        near, omega = weights.neighbours(at, torch.arange(weights.K))
        ids.insert(0, near.view(-1))
    samples = Samples(
        torch.full((1, n), 1 / n), (1 + backbone.kappa * factor * weights.c_I[at]).view(1, n), 1.0,
        torch.full((1, n), backbone.kappa * factor), weights.c_I[:I].view(1, I), omega,
    )  # fmt: skip
    user, item = row_k.expand(1, 1, n, D).contiguous(), items[m][torch.cat(ids)].unsqueeze(0)
    coefficients = Coefficients(backbone.nu, backbone.negative_weight)
    if loss == "softmax":
        return softmax(user, item, samples, coefficients, backbone.tau).user_grad_MPbk.sum((0, 1, 2))
    grad_k = logistic.ultragcn(user, item, samples, coefficients).user_grad_MPbk.sum((0, 1, 2))
    l2_k = torch.tensor([backbone.l2] * (D - 2) + [backbone.content_l2] * 2)
    return grad_k + 2 * l2_k * row_k


@pytest.mark.parametrize("loss", ["softmax", "ultragcn"])
def test_rows_are_where_the_loss_of_training_is_least(loss: str) -> None:
    row_MUk = found(loss, HISTORIES)
    for m in range(2):
        for u in (0, 2, 3):
            left = training_gradient(loss, row_MUk[m, u], m, HISTORIES[u]).norm()
            moved = row_MUk[m, u] + 0.3 * torch.ones(D)
            assert left < 0.02 * training_gradient(loss, moved, m, HISTORIES[u]).norm()
    assert torch.equal(row_MUk[:, 1], torch.full((2, D), 0.5))  # without a history: the mean row


@pytest.mark.parametrize("loss", ["softmax", "ultragcn"])
def test_a_row_is_the_same_again_and_in_other_company(loss: str) -> None:
    row_MUk = found(loss, HISTORIES)
    assert torch.equal(row_MUk, found(loss, HISTORIES))
    alone = found(loss, [HISTORIES[3]])
    assert torch.allclose(alone[:, 0], row_MUk[:, 3], atol=1e-4)
    assert found(loss, []).shape == (2, 0, D)


@pytest.mark.parametrize("loss", ["softmax", "ultragcn"])
def test_many_new_items_move_no_row(loss: str) -> None:
    """Rows of histories without them are the same, though the catalogue is too large to be scored whole."""
    backbone, weights, items = world(loss)
    more = [torch.cat([x, torch.full((5 * I, D), 3.0)]) for x in items]
    means = torch.full((2, D), 0.5)
    one, other = (FoldIn(backbone, weights, x, means, None).rows(histories(HISTORIES)) for x in (items, more))
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "ultragcn"])
def test_negatives_are_those_of_the_pool(loss: str) -> None:
    backbone, weights, items = world(loss)
    pool, means = torch.arange(0, I, 2), torch.zeros(2, D)
    one = FoldIn(backbone, weights, items, means, pool).rows(histories(HISTORIES))
    changed = [x.clone() for x in items]
    for x in changed:
        x[33] = 7.0  # neither in the pool nor in a history
    assert torch.equal(one, FoldIn(backbone, weights, changed, means, pool).rows(histories(HISTORIES)))
    assert not torch.allclose(one, FoldIn(backbone, weights, changed, means, None).rows(histories(HISTORIES)))
    for x in changed:
        x[38] = 7.0  # in the pool
    assert not torch.allclose(one, FoldIn(backbone, weights, changed, means, pool).rows(histories(HISTORIES)))


@pytest.mark.parametrize("loss", ["softmax", "ultragcn"])
def test_folded_users_rank_as_well_as_trained_ones(tmp_path: Path, planted_root: Path, loss: str) -> None:
    trained(tmp_path, f"data={planted_root}", f"backbone.loss={loss}", "merge.epochs=60", "model=ultragcn")
    run = m3dist.load(str(tmp_path), "cpu")
    rows = run.fold_in.rows(run.evaluator.items("train"))
    folded = Fused(run.score.members.of(list(rows)), run.score.fusion)
    was, now = (run.evaluator.evaluate(score, "val")[0]["ndcg@10"] for score in (run.score, folded))
    assert was > 0.15
    assert now > 0.95 * was
