"""Workers weigh the second loss alike, whether they hold all rows or their users' own.

Shapes: U users, I items, k width of rows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from parallel_helpers import engine_of, planted, small, spawn
from torch import Tensor

from m3dist.config import Config, load
from m3dist.data.dataset import Dataset
from m3dist.method import registry, second
from m3dist.method.fused import Members
from m3dist.training.context import Context

KINDS = ("user", "matrix")


def rows(dataset: Dataset, seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Rows [U, k] and [I, k] whose scores know something of validation interactions."""
    user, item = (torch.from_numpy(x.copy()).long() for x in dataset.interactions("val"))
    target_UI = torch.zeros(dataset.n_users, dataset.n_items).index_put_((user, item), torch.tensor(1.0))
    noise_UI = torch.randn(target_UI.shape, generator=torch.Generator().manual_seed(seed))
    return target_UI + noise * noise_UI, torch.eye(dataset.n_items)


def weighed(rank: int, world: int, config: Config, root: Path) -> dict[str, Tensor]:
    """The scale, this worker's users' rows and where they begin."""
    dataset, engine = Dataset(root), engine_of(config, rank, world)
    stored = {f"{m}.{kind}": x for m in (0, 1) for kind, x in zip(KINDS, rows(dataset, m + 2, 0.3), strict=True)}
    backbones = {
        name: load(None, [f"backbone.loss={loss}"]).backbone.resolved.model_dump(mode="json")
        for name, loss in (("backbone", "softmax"), ("second", "ultragcn"))
    }
    context = Context(dataset, config, engine, load=lambda stage: (stored, backbones))
    context = context.at(registry.model("ultragcn").final)
    low, high = context.data.bounds(0) or (0, dataset.n_users)
    own = [rows(dataset, m, 0.5) for m in (0, 1)]
    tables = {f"{m}.user": user[low:high] for m, (user, _) in enumerate(own)}
    members = Members(tables | {f"{m}.matrix": item for m, (_, item) in enumerate(own)}, low)
    found, learned, meta = second.joined(context, members)
    tried = torch.tensor([*meta["second"]["tried"].values()])
    return {"tried": tried, **learned, "user": found.user[1], "low": torch.tensor(low)}


def test_two_workers_weigh_as_one(tmp_path: Path) -> None:
    values = ["model=ultragcn", "backbone.loss=auto", "evaluation.k=[10]"]
    root = planted(tmp_path / "data", small(*values))
    alone = weighed(0, 1, small(*values), root)
    assert float(alone[second.SCALE].min()) > 0
    assert len(set(alone["tried"].tolist())) > 2
    for many in spawn(2, weighed, small(*values), root):
        torch.testing.assert_close(many["tried"], alone["tried"], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(many[second.SCALE], alone[second.SCALE], rtol=1e-5, atol=0)
        low, size = int(many["low"]), len(many["user"])
        assert 0 < size < len(alone["user"])
        torch.testing.assert_close(many["user"], alone["user"][low : low + size], rtol=1e-5, atol=1e-6)
