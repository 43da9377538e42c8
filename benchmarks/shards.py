"""What a worker holds of n interactions when W workers share them: `python -m benchmarks.shards --pairs 1e7`.

Each of W processes makes the objects of stage 1, takes steps, ranks, and runs a short stage 2 on made interactions
(10^5 users, 20,000 items, one modality of 16). Printed is the peak of each beyond its libraries, in a fit and in stage
2; the same with a hundredth of the interactions, which is what is fixed for W workers; what each of W should then have,
that and a W-th of what one worker has more; and what `m3dist train --dry-run` counts for interactions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch

from benchmarks.gang import gang, peak_mib, resident_mib
from benchmarks.sizes import Size, made
from m3dist.config import load
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Engine
from m3dist.method import invariance
from m3dist.method.align import AlignTask
from m3dist.training import memory
from m3dist.training.context import Context

VALUES = (
    "model=invrl", "backbone.loss=softmax", "backbone.dim=8", "align.dim=8", "align.batch_size=16384",
    "merge.masks=learned", "invariance.rounds=1", "invariance.environments=5", "invariance.environment_steps=5",
    "invariance.mask_steps=5",
)  # fmt: skip
STEPS = 5
Peaks = dict[str, float]


def worker(rank: int, world: int, root: Path, values: tuple[str, ...]) -> Peaks:
    """MiB of this worker beyond its libraries: the highest in a fit, and in stage 2."""
    config = load(None, values)
    torch.ones(64, 64, requires_grad=True).square().sum().backward()  # what the first gradient of a process loads
    libraries = resident_mib()
    context = Context(Dataset(root), config, Engine.of(config, rank, world, "cpu"))
    task = AlignTask(context)
    task.draws.seek(0, 0)
    for _ in range(STEPS):
        task.step()
        task.draws.advance()
    task.evaluate()
    fit = peak_mib() - libraries
    aligned = {name: x.clone() for name, x in task.output({}).tensors.items()}
    del task
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    invariance.train(context, aligned)
    return {"fit": fit, "stage 2": peak_mib() - libraries}


def worst(world: int, root: Path, values: tuple[str, ...]) -> Peaks:
    """Of the workers, the largest of each kind."""
    found = gang(world, worker, root, values)
    return {name: max(x[name] for x in found) for name in found[0]}


@click.command(help=__doc__)
@click.option("--pairs", default=1e7, show_default=True, help="Training interactions.")
@click.option("--workers", type=int, multiple=True, default=[1, 2, 4], show_default=True)
@click.option("--set", "more", multiple=True, metavar="KEY=VALUE", help="A value of the config; repeat it.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the made data here, and use what is there.")
def main(pairs: float, workers: tuple[int, ...], more: tuple[str, ...], folder: Path | None) -> None:
    values, n = (*VALUES, *more), int(pairs)
    with tempfile.TemporaryDirectory() as temporary:
        roots = [
            made(Size(10**5, 20_000, x, (16,)), (folder or Path(temporary)) / f"pairs{x}").root for x in (n, n // 100)
        ]
        dataset, config = Dataset(roots[0]), load(None, values)
        one: Peaks = {}  # of what interactions take, by one worker
        for world in (1, *(x for x in workers if x > 1)):
            few, many = (worst(world, root, values) for root in (roots[1], roots[0]))
            counted = memory.interactions(config, dataset, world) / 2**20
            for name in many:
                one.setdefault(name, many[name] - few[name])
                wanted = few[name] + one[name] / world
                print(
                    f"W = {world}, {name}: {many[name]:.0f} MiB, {few[name]:.0f} with a hundredth of the interactions; "
                    f"wanted {wanted:.0f}, ratio {many[name] / wanted:.2f}",
                    flush=True,
                )
            print(f"W = {world}: counted for interactions {counted:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
