"""The first 20 losses of each stage on planted data: a refactor must match them, a change of the method renews them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plain
import pytest
import torch

from m3dist.config import load
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Batch, Draws
from m3dist.method.align import AlignTask
from m3dist.method.content import Contents
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
    "invariance.environments=3", "invariance.negatives=32", "align.dim=16", "invariance.gamma=300", "backbone.l2=0.03",
    "align.epochs=10", "merge.epochs=10", "align.lr=0.02", "merge.lr=0.02",
]  # fmt: skip
STEPS = 20
LOSSES = ["softmax", "ultragcn"]
STAGES = ["align", "environments", "masks", "merge"]
Losses = dict[str, list[float]]


def batches(draws: Draws) -> list[Batch]:
    out = []
    for t in range(STEPS):
        draws.seek(*divmod(t, draws.steps))
        out.append(draws.draw())
    return out


def fitted(task: AlignTask | MergeTask, context: Context) -> list[float]:
    """Losses of steps as training takes them, learning rates included."""
    sums, out = Sums(), []
    take = stepper(task, getattr(context.config, "align" if isinstance(task, AlignTask) else "merge"), sums)
    for t in range(STEPS):
        task.draws.seek(*divmod(t, task.draws.steps))
        sums.start({})
        take()
        out.append(sums.read()["loss"])
    return out


def second(steps: Steps) -> list[float]:
    """The same of stage 2, summed over representations."""
    out = []
    for t in range(STEPS):
        steps.draws.seek(*divmod(t, steps.draws.steps))
        steps.sums.start({})
        steps()
        out.append(sum(x for name, x in steps.sums.read().items() if name.split("/")[-1] == "loss"))
    return out


@pytest.fixture(scope="module", params=LOSSES)
def losses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Losses, Losses]:
    """The loss, what the library's first steps of every stage find under it, and what `plain` does."""
    config = load(None, [*SMALL, f"backbone.loss={request.param}"])
    root = tmp_path_factory.mktemp("golden") / "data"
    synthetic.write(root, config.synthetic, 0)
    context = Context(Dataset(root), config)
    found, want = {}, {}

    def total(task: AlignTask | MergeTask) -> int:
        settings = config.align if isinstance(task, AlignTask) else config.merge
        return settings.length(len(task.draws.pairs.user)) * task.draws.steps

    align = AlignTask(context)
    want["align"] = plain.align(align, config, batches(align.draws), total(align))
    found["align"] = fitted(align, context)
    x, tensors = align.representations(), align.output({}).tensors
    trainer = Trainer(Frozen.tensors(context.dataset, tensors), "cpu", config)
    frozen = trainer.frozen
    tables = (torch.nn.functional.pad(tensors[f"member.{name}"].double(), (0, 0, 0, 1)) for name in ("user", "item"))
    given = plain.Given(config.backbone.resolved, frozen.weights, *tables)
    # users whose content differs, so that environments do
    by_content = torch.argsort(torch.argsort(frozen.content_Uc[frozen.user, 0], stable=True)) * 3 // len(frozen.user)
    environment = dict.fromkeys(range(len(x)), by_content)
    psi, logits = ({r: torch.full((part.shape[1],), value) for r, part in enumerate(x)} for value in (0.5, 0.0))
    steps, models = trainer.environment_steps(dict.fromkeys(environment, range(3)), psi, environment, 0)
    start = tuple({r: getattr(models, f"{name}_{r}") for r in environment} for name in "Wb")
    reads = {r: (0.5 * frozen.x[r], environment[r]) for r in environment}
    want["environments"] = plain.environments(given, config, batches(steps.draws), reads, start)
    found["environments"] = second(steps)
    last = config.invariance.rounds - 1
    steps, gates = trainer.mask_steps(logits, environment, last)
    start = tuple({r: getattr(gates, f"{name}_{r}") for r in environment} for name in "Wb")
    reads = {r: (frozen.x[r], environment[r]) for r in environment}
    want["masks"] = plain.masks(given, config, batches(steps.draws), reads, start)
    found["masks"] = second(steps)
    assert steps.sums.read()["0/variance"] > 1e-2  # of the last step
    merge = MergeTask(context, Contents.beside(x[:2]))
    want["merge"] = plain.merge(merge.members, [x[0], x[1]], batches(merge.draws), total(merge), config.merge.lr)
    found["merge"] = fitted(merge, context)
    return request.param, found, want


GOLDEN = Path(__file__).with_name("golden_losses.txt")


@pytest.mark.parametrize("stage", STAGES)
def test_golden_losses(losses: tuple[str, Losses, Losses], stage: str) -> None:
    """Renewed by writing the printed losses into golden_losses.txt after a change of the method that is meant."""
    loss, found, _ = losses
    print(f"{loss}/{stage}", *(f"{x:.6g}" for x in found[stage]))
    rows = {name: values for name, *values in (line.split() for line in GOLDEN.read_text().splitlines())}
    np.testing.assert_allclose(found[stage], [float(x) for x in rows[f"{loss}/{stage}"]], rtol=2e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_they_are_what_the_equations_say(losses: tuple[str, Losses, Losses], stage: str) -> None:
    """Twenty steps of a plain computation in float64, whose rounding differs."""
    _, found, want = losses
    np.testing.assert_allclose(found[stage], want[stage], rtol=2e-4)
