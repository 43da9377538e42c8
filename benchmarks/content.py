"""`python -m benchmarks.content [--items I]`: memory that content takes through the stages of one process.

Made items with three modalities of 64 columns, few interactions and narrow tables, so that content is what counts.
Printed is how much resident memory grew since the start, now and at most since the line before, in units of the
features as they are given in float32 (4 bytes times I times 192). What stage 1 leaves stays in memory here, where a run
writes it to a file, and memory that is freed goes back to the system, where a run keeps it.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import torch

from benchmarks.gang import peak_mib, resident_mib
from benchmarks.sizes import Size, made
from m3dist.config import load
from m3dist.data.dataset import Dataset
from m3dist.method import merge
from m3dist.method.align import AlignTask
from m3dist.training.context import Context

MODALITIES, WIDTH = 3, 64
VALUES = ("backbone.loss=softmax", "backbone.tau=0.2", "backbone.dim=8", "align.dim=8")


def measure(dataset: Dataset) -> Iterator[tuple[str, float, float]]:
    """What happened, and the growth of resident memory: now, and at most since the line before."""
    unit, context = 4 * dataset.n_items * MODALITIES * WIDTH, Context(dataset, load(None, VALUES))
    assert len(context.data.pairs) == 2
    gc.collect()
    start = resident_mib()

    def grown(what: str) -> tuple[str, float, float]:
        gc.collect()
        found = what, *((x - start) * 2**20 / unit for x in (resident_mib(), peak_mib()))
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
        size = Size(users=10_000, items=items, pairs=items // 2, widths=(WIDTH,) * MODALITIES)
        for what, now, peak in measure(made(size, Path(folder) / "data")):
            click.echo(f"{what:32} {now:6.2f} {peak:6.2f}")


if __name__ == "__main__":
    main()
