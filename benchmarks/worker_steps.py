"""Steps of stage 3 by several workers: `python -m benchmarks.worker_steps [--data DIR] [--set KEY=VALUE]...`.

Each of W processes of one thread holds its share of the interactions, talks to the others over gloo and takes the same
steps, of a member for each modality or of one on ids where there is none; nothing is ranked. W = 1, 2 (or `--workers`)
take turns, as often as `--turns` says. Printed are milliseconds of a step by the clock (median), the least processor
time of one, interactions a second of all workers, and the peak memory of the largest worker, its libraries included.
With `--each` a batch and its groups are those of one worker, so that W workers share W times as much a step.
Data are made at the size of `--size` where no prepared set is named.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.distributed import task_of
from benchmarks.gang import gang, peak_mib
from benchmarks.sizes import SIZES, made
from benchmarks.subjects import configured, stepping
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Engine


def worker(rank: int, world: int, root: Path, values: tuple[str, ...], steps: int) -> dict[str, float]:
    config = configured(values)
    engine = Engine.of(config, rank, world, "cpu")
    step = stepping(task_of("merge" if Dataset(root).modalities else "ids", config, root, engine), config.merge)
    for _ in range(2):
        step()
    wall, cpu = [], []
    for _ in range(steps):
        engine.barrier()
        began = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    return {"wall": statistics.median(wall), "cpu": min(cpu), "MiB": peak_mib()}


def larger(values: tuple[str, ...], times: int) -> tuple[str, ...]:
    """What makes a batch so many times as large, of groups of the same size."""
    config = configured(values)
    batch, groups = config.merge.batch_size, config.backbone.groups
    return f"merge.batch_size={batch * times}", f"backbone.groups={groups * times}"


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A prepared data set.")
@click.option("--size", type=click.Choice([*SIZES]), default="ml1m", show_default=True)
@click.option("--workers", type=int, multiple=True, default=[1, 2], show_default=True)
@click.option("--set", "values", multiple=True, default=["merge.batch_size=16384"], show_default=True)
@click.option("--steps", default=15, show_default=True)
@click.option("--turns", default=3, show_default=True)
@click.option("--each", is_flag=True, help="Batches and groups are of each worker.")
def main(**given: Any) -> None:
    data, values, workers = given["data"], given["values"], given["workers"]
    with tempfile.TemporaryDirectory() as folder:
        root = data or made(SIZES[given["size"]], Path(folder) / given["size"]).root
        for _ in range(given["turns"]):
            for world in workers:
                shared = values + larger(values, world) if given["each"] else values
                found = gang(world, worker, root, shared, given["steps"])
                worst = {name: max(one[name] for one in found) for name in found[0]}
                batch = configured(shared).merge.batch_size
                click.echo(
                    f"W = {world}: {worst['wall'] * 1e3:.1f} ms by the clock, {worst['cpu'] * 1e3:.0f} of a processor, "
                    f"{batch / worst['wall']:,.0f} interactions/s, {worst['MiB']:.0f} MiB"
                )


if __name__ == "__main__":
    main()
