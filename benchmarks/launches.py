"""Section `launches`: what each kind of step asks of a GPU, counted on the stand-in device: launches, waits, copies.

A step is what training takes: learning rate, sampling, loss, optimisers and the sums that are reported. Shapes do not
depend on the data, so small planted data counts like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measure import Row
from benchmarks.standin import NAME, Counted, Standin
from m3dist.config import Config, load
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Engine
from m3dist.evaluation.ranking import Users
from m3dist.method.align import AlignTask
from m3dist.method.environments import Frozen
from m3dist.method.merge import MergeTask
from m3dist.method.trainer import Trainer
from m3dist.training.context import Context
from m3dist.training.loop import Task, stepper

MOST = {"backbone": 250, "merge": 300, "align": 450, "environments": 400, "masks": 400}  # launches of a step
BLOCK_WAITS = 1  # of an evaluation block

SMALL = [
    "synthetic.users=120", "synthetic.items=90", "synthetic.interactions=20", "evaluation.block=40",
    *(f"{stage}.batch_size=256" for stage in ("align", "invariance", "merge")),
]  # fmt: skip


def measure(folder: Path) -> Iterator[Row]:
    """A row for each kind of step, and for a block of users in evaluation."""
    config = load(None, SMALL)
    if not (folder / "planted").exists():
        synthetic.write(folder / "planted", config.synthetic, 0)
    with Standin() as counted:
        context = Context(Dataset(folder / "planted"), config, Engine(device=NAME))
        merge = MergeTask(context, [*context.data.features])
        align = AlignTask(context)
        tasks: dict[str, Task] = {
            "backbone": MergeTask(context, [context.data.all_features]), "align": align, "merge": merge
        }  # fmt: skip
        for name, task in tasks.items():
            task.draws.seek(0, 0)
            yield _counts(name, stepper(task, config.merge), counted)
        trainer = _trainer(context, align, config)
        n, R = len(trainer.frozen.user), len(trainer.frozen.x)
        split = {r: torch.zeros(n, dtype=torch.int16) for r in range(R)}
        names = dict.fromkeys(range(R), range(config.invariance.environments))
        psi = {r: torch.ones(x.shape[1]) for r, x in enumerate(trainer.frozen.x)}
        logits = {r: torch.zeros(x.shape[1]) for r, x in enumerate(trainer.frozen.x)}
        yield _counts("environments", trainer.environment_steps(names, psi, split, 0)[0], counted)
        yield _counts("masks", trainer.mask_steps(logits, split, 1)[0], counted)
        yield _block(context, merge, counted)


def _trainer(context: Context, align: AlignTask, config: Config) -> Trainer:
    aligned = {name: x.cpu() for name, x in align.output({}).tensors.items()}
    return Trainer(Frozen.tensors(context.dataset, aligned), NAME, config, context.engine)


def _counts(name: str, step: Callable[[], object], counted: Counted) -> Row:
    """Of the third step: the first makes the optimiser's state."""
    for _ in range(2):
        step()
    counted.clear()
    step()
    values = {"launches": counted.launches, "waits": counted.waits, "copies": counted.copies}
    note = f"at most {MOST[name]} launches" if name in MOST else ""
    return Row("launches", f"{name} step", {key: float(x) for key, x in values.items()}, note)


def _block(context: Context, merge: MergeTask, counted: Counted) -> Row:
    """One block of users ranked by the fused members."""
    evaluator, device = context.evaluator, context.engine.device
    fused = merge.fused("entropy", merge.matrices())
    blocks = evaluator.ranking(fused, 20, "val").blocks(Users.of(torch.arange(80).numpy(), device))
    with torch.no_grad():
        next(blocks)
        counted.clear()
        next(blocks)
    values = {"launches": counted.launches, "waits": counted.waits, "copies": counted.copies}
    return Row("launches", "evaluation block", {key: float(x) for key, x in values.items()}, "at most one wait")
