"""`python -m benchmarks.distributed [SECTION]...`: what workers cost here, measured in one run.

startup: seconds until a stage can step. steps: seconds of a step alone, of two workers under DDP, ZeRO 0 to 3 and
sharded tables. bytes: what a worker sends in a step against the size of the table. memory: of each worker, replicated
and sharded. large: a table of 10^7 users and 10^6 items through the whole command, within 20 GiB.

Every value stands beside the one that `costs` predicts where there is a formula. Workers are processes of this machine
with one thread each, over gloo; more of them than cores share the cores.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from benchmarks import costs, measure
from benchmarks.gang import gang, peak_mib
from benchmarks.measure import Report, Row
from benchmarks.sizes import SIZES, Size, made
from benchmarks.subjects import configured, stepping
from benchmarks.trained import Highest
from m3dist.config import Backbone, Config, load
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Engine
from m3dist.method import environments
from m3dist.method.align import AlignTask
from m3dist.method.content import Contents, evening
from m3dist.method.merge import MergeTask, joined
from m3dist.training.context import Context
from m3dist.training.loop import Fitting
from m3dist.training.tracking import Tracker

Task = AlignTask | MergeTask
SHARDED = "embeddings=sharded"
STRATEGIES: dict[str, tuple[str, ...]] = {
    "DDP": (),
    **{f"ZeRO {stage}": ("strategy=deepspeed", f"zero_stage={stage}") for stage in range(4)},
    "DDP, sharded tables": (SHARDED,),
    "ZeRO 3, sharded tables": ("strategy=deepspeed", "zero_stage=3", SHARDED),
}
USERS = (10**4, 10**6, 10**7)
LIMIT_GIB = 20
LARGE = Size(users=10**7, items=10**6, pairs=4_000_000, widths=())
LARGE_VALUES = (
    "model=ultragcn", "backbone.loss=softmax", "merge.epochs=2", "merge.batch_size=32768", "merge.evaluate_every=1",
    "evaluation.block=16",
)  # fmt: skip


def task_of(kind: str, config: Config, root: Path, engine: Engine) -> Task:
    """`align`, `merge` with a member for each modality as M3-InvRL has them, or `ids`: a member on ids alone."""
    context = Context(Dataset(root), config, engine)
    if kind == "align":
        return AlignTask(context)
    return MergeTask(context, Contents.beside([None]) if kind == "ids" else unmasked(context))


def unmasked(context: Context) -> Contents:
    """What members read where nothing is masked and features stand for the representations."""
    x, whole = context.data.features, context.data.all_features
    assert whole is not None
    return joined(context, "one", [*x, whole * evening(whole)])


def stepped(rank: int, world: int, kind: str, values: tuple[str, ...], root: Path, steps: int) -> dict[str, Any]:
    """Median seconds and sent bytes of a step, distinct rows of this worker, and its peak memory with all of Adam's."""
    config = configured(values)
    engine = Engine.of(config, rank, world, "cpu")
    before = peak_mib()
    task = task_of(kind, config, root, engine)
    task.draws.seek(0, 0)
    sampled = (task.member if isinstance(task, AlignTask) else task.members).sample(task.draws.draw())
    step = stepping(task, config.align if isinstance(task, AlignTask) else config.merge)
    for table in task.tables.values():
        table.first.fill_(0)  # pages that training touches in time
        table.second.fill_(0)
    fitting = Fitting(task, None)  # holds the best copy
    engine.sent, seconds = 0, []
    for _ in range(steps + 1):
        engine.barrier()
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    held = sum(x.nbytes for table in task.tables.values() for x in table.parts().values())
    kept = sum(fitting.kept[name].nbytes for name in fitting.rows())
    rows = {"users": sampled.user, "items": sampled.item}
    return {
        "seconds": statistics.median(seconds[1:]),
        "sent": engine.sent / (steps + 1),
        **{name: len(x.slots.ids_R) for name, x in rows.items()},
        **{f"all {name}": len(x.slots.ids_R if x.ids_G is None else x.ids_G) for name, x in rows.items()},
        "tables MiB": (held + kept) / 2**20,
        "before MiB": before,
        "peak MiB": peak_mib(),
        "dense bytes": sum(p.nbytes for p in task.dense.named().values()),
    }


def startup(folder: Path) -> Iterator[Row]:
    """Of a Ray instance, a Ray Train run, the actors of stage 2, and every stage's own objects on ml1m."""
    import ray

    from m3dist.distributed import ray_train as launch
    from m3dist.distributed.actors import ActorSettings, Pool

    values: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        out = call()
        values[name] = time.perf_counter() - started
        return out

    with tempfile.TemporaryDirectory(prefix="m3b") as temporary:  # short: Ray's sockets must fit 107 bytes
        local = {"address": "local", "num_cpus": 2, "_temp_dir": temporary, "log_to_driver": False}
        timed("Ray on this machine, s", lambda: ray.init(**local))
        for workers in (1, 2):
            config = load(None, [f"workers={workers}", f"out={folder / 'startup'}"])
            with Tracker(None) as tracker:
                timed(
                    f"a Ray Train run of {workers}, s",
                    lambda c=config, t=tracker: launch.run(launch.Task(nothing, "none"), c, t),
                )

        def pool() -> None:
            with Pool(held, {"x": torch.zeros(1)}, ActorSettings(2)) as actors:
                actors.processes()

        timed("2 actors, s", pool)
        ray.shutdown()
    root = made(SIZES["ml1m"], folder / "ml1m").root
    config = configured(())
    context = Context(Dataset(root), config)
    timed("data in memory, s", lambda: (context.data.pairs, context.data.features))
    timed("item-item graph, s", lambda: context.data.weights(Backbone(loss="ultragcn").resolved))
    align = timed("align's objects, s", lambda: AlignTask(context))
    tensors = environments.Frozen.tensors(context.dataset, align.output({}).tensors)
    timed("invariance's objects, s", lambda: environments.Frozen(tensors, "cpu", config))
    timed("merge's objects, s", lambda: MergeTask(context, unmasked(context)))
    yield Row("startup", "seconds until a stage can step, ml1m", values)


def nothing(engine: Engine, tracker: Tracker) -> None:
    """Work of a Ray Train run that only starts and ends."""


def held(tensors: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    """What an actor of no use holds."""
    return tensors


def steps(folder: Path, size: str = "ml1m", count: int = 20) -> Iterator[Row]:
    """Of stages 1 and 3, of one worker and of two under every strategy."""
    root = made(SIZES[size], folder / size).root
    for kind in ("align", "merge"):
        (alone,) = gang(1, stepped, kind, (), root, count)
        yield Row("steps", f"{kind} step of one worker, {size}", {"ms": alone["seconds"] * 1e3})
        for name, values in STRATEGIES.items():
            both = gang(2, stepped, kind, values, root, count)
            took = max(x["seconds"] for x in both)
            found = {"ms": took * 1e3, "times one worker": took / alone["seconds"]}
            found |= {"KiB of rows sent": both[0]["sent"] / 1024, "peak MiB of a worker": both[0]["peak MiB"]}
            yield Row("steps", f"{kind} step of two workers, {name}, {size}", found)


def sent(folder: Path, users: tuple[int, ...] = USERS, dim: int = 16) -> Iterator[Row]:
    """Of a step of ids alone, whole gradients beside touched rows; narrow tables, since bytes are linear in width."""
    for n in users:
        root = made(Size(n, max(n // 10, 10), 200_000, ()), folder / f"users{n}").root
        common = (f"backbone.dim={dim}", "backbone.nu=0")
        values: dict[str, float] = {"whole tables, KiB (formula)": 4 * dim * (n + max(n // 10, 10)) / 1024}
        for name, more in (("replicated", ()), ("sharded", (SHARDED,))):
            both = gang(2, stepped, "ids", (*common, *more), root, 5)
            mean = {key: statistics.mean(x[key] for x in both) for key in both[0]}
            if more:
                predicted = costs.sharded_bytes(mean["items"], dim, 2)
            else:
                predicted = costs.replicated_bytes(mean["all items"], dim)
            values |= {f"{name}, KiB": mean["sent"] / 1024, f"{name}, KiB (formula)": predicted / 1024}
            values[f"{name}, ms"] = mean["seconds"] * 1e3
        yield Row("bytes", f"sent by each of two workers in a step, {n:.0e} users, dim {dim}", values)


def memory(folder: Path, size: Size | None = None, worlds: tuple[int, ...] = (1, 2, 4)) -> Iterator[Row]:
    size = size or Size(10**6, 10**5, 3 * 10**6, ())
    dataset = made(size, folder / f"memory{size.users}")
    root, config = dataset.root, load(None)
    for world in worlds:
        for name, more in (("replicated", ()), ("sharded", (SHARDED,))):
            if world == 1 and more:
                continue
            found = gang(world, stepped, "ids", ("backbone.nu=0", *more), root, 3)
            worst = max(found, key=lambda x: x["peak MiB"])
            users = [high - low for low, high in (dataset.part(rank, world).users for rank in range(world))]
            items, dim = size.items / (world if more else 1), config.backbone.dim
            table = costs.table_bytes(max(users), items, dim, dim)
            yield Row(
                "memory",
                f"of each of {world} workers, {name}, {size.users:.0e} users",
                {
                    "tables, moments, best, MiB": worst["tables MiB"],
                    "the same by formula, MiB": table / 2**20,
                    "peak beyond the libraries, MiB": worst["peak MiB"] - worst["before MiB"],
                },
            )


def large(folder: Path, size: Size = LARGE, values: tuple[str, ...] = LARGE_VALUES, workers: int = 2) -> Iterator[Row]:
    """The command itself: Ray Train, steps, checkpoints, evaluation, the artifact and the test split."""
    root = made(size, folder / f"large{size.users}").root
    out = folder / "large"
    command = [sys.executable, "-m", "m3dist", "train", f"data={root}", f"out={out}", f"workers={workers}"]
    started = time.perf_counter()
    child = subprocess.Popen(
        [*command, SHARDED, *values],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_memory_monitor_refresh_ms": "0"},  # there is a limit here, and none on neighbours
    )
    highest = Highest(child, LIMIT_GIB * 2**30)
    highest.start()
    _, error = child.communicate()
    highest.join()
    if child.returncode:
        raise RuntimeError(f"the training ended with {child.returncode} at {highest.together} bytes: {error[-2000:]}")
    config = load(None, values)
    lines = [line for line in error.splitlines() if line.startswith("merge")]
    seconds = time.perf_counter() - started
    dim = config.backbone.dim
    formula = costs.table_bytes(size.users / workers, size.items / workers, dim, dim) / 2**30
    yield Row(
        "large",
        f"{size.users:.0e} users x {size.items:.0e} items, dim {config.backbone.dim}, {workers} workers, sharded",
        {
            "GiB of all processes": highest.together / 2**30,
            "GiB with shared pages counted in each": highest.resident / 2**30,
            "GiB of the largest worker": highest.largest / 2**30,
            "its tables by formula, GiB": formula,
            "seconds in all": seconds,
            "interactions/s": float(lines[-1].split("interactions/s ")[1].split()[0]) if lines else float("nan"),
        },
        f"limit {LIMIT_GIB} GiB; {' | '.join(lines)}",
    )
    if highest.together > LIMIT_GIB * 2**30:
        raise RuntimeError(f"more than {LIMIT_GIB} GiB: {highest.together} bytes")


SECTIONS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "startup": startup,
    "steps": steps,
    "bytes": sent,
    "memory": memory,
    "large": large,
}


@click.command(help=__doc__)
@click.argument("sections", nargs=-1, metavar="[SECTION]...")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the numbers here.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep made data and runs here, and use what is there.")
def main(sections: tuple[str, ...], path: Path | None, folder: Path | None) -> None:
    console = Console()
    try:
        chosen = measure.only(SECTIONS, sections, "section")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    torch.set_num_threads(1)
    report = Report(measure.machine(measure.roof()))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen:
            for row in SECTIONS[name](folder or Path(temporary)):
                report.rows.append(row)
                shown = ", ".join(f"{what} {value:,.4g}" for what, value in row.values.items())
                console.print(
                    f"[{time.perf_counter() - began:4.0f} s] {row.what}: {shown}", highlight=False, markup=False
                )
    measure.show(report, console)
    if path:
        report.write(path)


if __name__ == "__main__":
    main()
