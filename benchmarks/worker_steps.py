"""Steps of stage 3 by several workers: `python -m benchmarks.worker_steps [--data DIR] [--set KEY=VALUE]...`.

Each of W processes of one thread holds its share of the interactions, talks to the others over gloo and takes the same
steps, of a member for each modality or of one on ids where there is none; nothing is ranked. W = 1, 2 (or `--workers`)
take turns, as often as `--turns` says. Printed are milliseconds of a step by the clock (median), the least processor
time of one, interactions a second of all workers, and the peak memory of the largest worker, its libraries included.
Data are made at the size of `--size` where no prepared set is named.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

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


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A prepared data set.")
@click.option("--size", type=click.Choice([*SIZES]), default="ml1m", show_default=True)
@click.option("--workers", type=int, multiple=True, default=[1, 2], show_default=True)
@click.option("--set", "values", multiple=True, default=["merge.batch_size=16384"], show_default=True)
@click.option("--steps", default=15, show_default=True)
@click.option("--turns", default=3, show_default=True)
def main(
    data: Path | None, size: str, workers: tuple[int, ...], values: tuple[str, ...], steps: int, turns: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = data or made(SIZES[size], Path(folder) / size).root
        batch = configured(values).merge.batch_size
        for _ in range(turns):
            for world in workers:
                found = gang(world, worker, root, values, steps)
                worst = {name: max(one[name] for one in found) for name in found[0]}
                click.echo(
                    f"W = {world}: {worst['wall'] * 1e3:.0f} ms by the clock, {worst['cpu'] * 1e3:.0f} of a processor, "
                    f"{batch / worst['wall']:,.0f} interactions/s, {worst['MiB']:.0f} MiB"
                )


if __name__ == "__main__":
    main()
