"""The first 20 losses of each stage on planted data: a refactor must match them, a change of the method renews them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m3dist.config import load
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.data.sampling import Draws
from m3dist.losses import Projection
from m3dist.method import environments
from m3dist.method.align import AlignTask
from m3dist.method.environments import Assigned
from m3dist.method.merge import MergeTask
from m3dist.models.gate import Gate
from m3dist.training.context import Context

SMALL = [
    "synthetic.users=120", "synthetic.items=90", "synthetic.interactions=20", "backbone.dim=8",
    "backbone.content_dim=8", "backbone.neighbour_samples=2",
    "backbone.negatives=32", "align.batch_size=256", "merge.batch_size=256", "invariance.batch_size=256",
    "invariance.environments=3", "invariance.negatives=32", "align.dim=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    config = load(None, SMALL)
    root = tmp_path_factory.mktemp("golden") / "data"
    synthetic.write(root, config.synthetic, 0)
    context = Context(Dataset(root), config)
    steps = 20

    def train(task: AlignTask | MergeTask) -> list[float]:
        per = task.sampler.steps
        return [float(task.step(task.sampler(t // per, t % per))["loss"].detach()) for t in range(steps)]

    align = AlignTask(context)
    out = {"align": train(align)}
    x = align.representations()
    aligned = align.output({}).tensors
    frozen = environments.Frozen(environments.Frozen.tensors(Dataset(root), aligned), "cpu", config)
    environment, D = torch.arange(len(frozen.user)) % 3, x[0].shape[1]
    pairs = [environments.fresh(config.seed, 8, D, ("golden", e)) for e in range(3)]
    W, b = (torch.stack(parts).requires_grad_() for parts in zip(*pairs, strict=True))
    gate, whole = Gate(D, "sigmoid", 0.5), torch.ones(D)
    optimizer = torch.optim.Adam([W, b, *gate.parameters()], lr=0.01)
    sampler = context.data.sampler(config.seed, "golden", 256, Draws(32))
    out["environments"], out["masks"] = [], []
    for t in range(steps):
        step = frozen.step(sampler, t // sampler.steps, t % sampler.steps)
        assigned = Assigned(0, environment[step.batch.index_b], range(3))
        optimizer.zero_grad()
        one = environments.environment_loss(frozen, step, assigned, whole, Projection(W, b))
        terms = environments.mask_loss(frozen, step, assigned, gate(), Projection(W[0], b[0]))
        two = terms["fit"] + 0.1 * terms["variance"] + config.invariance.rho * terms["size"]
        (one + two).backward()
        optimizer.step()
        out["environments"].append(float(one.detach()))
        out["masks"].append(float(two.detach()))
    out["merge"] = train(MergeTask(context, [x[0], x[1]]))
    return out


GOLDEN = Path(__file__).with_name("golden_losses.txt")


@pytest.mark.parametrize("stage", ["align", "environments", "masks", "merge"])
def test_golden_losses(losses: dict[str, list[float]], stage: str) -> None:
    """Renewed by writing the printed losses into golden_losses.txt after a change of the method that is meant."""
    rows = {name: values for name, *values in (line.split() for line in GOLDEN.read_text().splitlines())}
    np.testing.assert_allclose(losses[stage], [float(x) for x in rows[stage]], rtol=2e-4)
