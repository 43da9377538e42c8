"""`python -m benchmarks.content [--items I]`: memory that content takes through the stages of one process.

Made items with three modalities of 64 columns, few interactions and narrow tables, so that content is what counts.
Printed is how much resident memory grew since the start, now and at most since the line before, in units of the
features as they are given in float32 (4 bytes times I times 192). What stage 1 leaves stays in memory here, where a run
writes it to a file.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch

from m3dist.config import load
from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer
from m3dist.method import merge
from m3dist.method.align import AlignTask
from m3dist.training.context import Context

USERS, MODALITIES, WIDTH = 10_000, 3, 64
VALUES = ("backbone.loss=softmax", "backbone.tau=0.2", "backbone.dim=8", "align.dim=8")


def made(root: Path, items: int) -> Dataset:
    """Half as many interactions as there are items, drawn evenly."""
    rng = np.random.default_rng(0)
    pair = np.unique(rng.integers(0, USERS * items, items // 2))
    user, item = np.divmod(rng.permutation(pair), items)
    bounds = {"train": slice(0, -2000), "val": slice(-2000, -1000), "test": slice(-1000, None)}
    with Writer(root) as out:
        for m in range(MODALITIES):
            sizes = np.diff(np.linspace(0, items, 41).astype(int))
            out.features(f"made{m}", (rng.standard_normal((n, WIDTH)).astype(np.float32) for n in sizes))
        out.interactions(USERS, items, {split: (user[at], item[at]) for split, at in bounds.items()})
        out.finish()
    return Dataset(root)


def _resident(what: str) -> int:
    """Bytes: VmRSS now, VmHWM at most since the peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{what}:"))


def measure(dataset: Dataset) -> Iterator[tuple[str, float, float]]:
    """What happened, and the growth of resident memory: now, and at most since the line before."""
    unit, context = 4 * dataset.n_items * MODALITIES * WIDTH, Context(dataset, load(None, VALUES))
    assert len(context.data.pairs) == 2
    gc.collect()
    start = _resident("VmRSS")

    def grown(what: str) -> tuple[str, float, float]:
        gc.collect()
        found = what, *((_resident(name) - start) / unit for name in ("VmRSS", "VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
        return found

    grown("")
    assert len(context.data.features) == MODALITIES
    yield grown("features are prepared")
    task = AlignTask(context)
    task.step()
    yield grown("stage 1 has taken a step")
    aligned = task.output({}).tensors
    yield grown("it has left its representations")
    del task
    yield grown("it is gone")
    members = merge.MergeTask(
        context, merge.joined(context, "one", [aligned[f"representation.{r}"] for r in range(MODALITIES + 1)])
    )
    members.step()
    yield grown("stage 3 has taken a step")
    members.matrices()
    yield grown("all items were projected")


@click.command(help=__doc__)
@click.option("--items", default=400_000, show_default=True)
def main(items: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for what, now, peak in measure(made(Path(folder) / "data", items)):
            click.echo(f"{what:32} {now:6.2f} {peak:6.2f}")


if __name__ == "__main__":
    main()
