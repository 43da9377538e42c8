"""The first 20 losses of each stage on planted data: a refactor must match them, a change of the method renews them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m3dist.config import load
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.method.align import AlignTask
from m3dist.method.environments import Frozen
from m3dist.method.merge import MergeTask
from m3dist.method.trainer import Steps, Trainer
from m3dist.training.context import Context
from m3dist.training.loop import stepper
from m3dist.training.steps import Sums

SMALL = [
    "synthetic.users=120", "synthetic.items=90", "synthetic.interactions=20", "backbone.dim=8",
    "backbone.content_dim=8", "backbone.neighbour_samples=2",
    "backbone.negatives=32", "align.batch_size=256", "merge.batch_size=256", "invariance.batch_size=256",
    "invariance.environments=3", "invariance.negatives=32", "align.dim=16",
]  # fmt: skip
STEPS = 20


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Steps as training takes them, learning rates included."""
    config = load(None, SMALL)
    root = tmp_path_factory.mktemp("golden") / "data"
    synthetic.write(root, config.synthetic, 0)
    context = Context(Dataset(root), config)

    def train(task: AlignTask | MergeTask) -> list[float]:
        sums = Sums()
        take, out = stepper(task, getattr(config, "align" if isinstance(task, AlignTask) else "merge"), sums), []
        for t in range(STEPS):
            task.draws.seek(*divmod(t, task.draws.steps))
            sums.start({})
            take()
            out.append(sums.read()["loss"])
        return out

    def second(steps: Steps) -> list[float]:
        out = []
        for t in range(STEPS):
            steps.draws.seek(*divmod(t, steps.draws.steps))
            steps.sums.start({})
            steps()
            out.append(sum(x for name, x in steps.sums.read().items() if name.split("/")[-1] == "loss"))
        return out

    align = AlignTask(context)
    out = {"align": train(align)}
    x = align.representations()
    trainer = Trainer(Frozen.tensors(context.dataset, align.output({}).tensors), "cpu", config)
    environment = dict.fromkeys(range(len(x)), torch.arange(len(trainer.frozen.user)) % 3)
    psi, logits = ({r: torch.full((part.shape[1],), value) for r, part in enumerate(x)} for value in (0.5, 0.0))
    out["environments"] = second(
        trainer.environment_steps(dict.fromkeys(environment, range(3)), psi, environment, 0)[0]
    )
    out["masks"] = second(trainer.mask_steps(logits, environment, 2)[0])
    out["merge"] = train(MergeTask(context, [x[0], x[1]]))
    return out


GOLDEN = Path(__file__).with_name("golden_losses.txt")


@pytest.mark.parametrize("stage", ["align", "environments", "masks", "merge"])
def test_golden_losses(losses: dict[str, list[float]], stage: str) -> None:
    """Renewed by writing the printed losses into golden_losses.txt after a change of the method that is meant."""
    print(stage, *(f"{x:.6g}" for x in losses[stage]))
    rows = {name: values for name, *values in (line.split() for line in GOLDEN.read_text().splitlines())}
    np.testing.assert_allclose(losses[stage], [float(x) for x in rows[stage]], rtol=2e-4)
