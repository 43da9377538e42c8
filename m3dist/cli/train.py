"""`m3dist train CONFIG.yaml key=value ...`"""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from m3dist import config as configs
from m3dist.terminal import cells, printable

if TYPE_CHECKING:
    from m3dist.data.dataset import Dataset


@click.command(name="train")
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...")
@click.option("--resume", metavar="RUN", help="Go on with the run in this folder, from where it was cut off.")
@click.option("--print-config", is_flag=True, help="Show the resolved config and stop.")
@click.option("--dry-run", is_flag=True, help="Check the config and the data, predict memory, and stop.")
@click.option(
    "--explain", is_flag=True, help="Say what each stage will do with the data, its cost and memory, and stop."
)
def command(arguments: tuple[str, ...], resume: str | None, print_config: bool, dry_run: bool, explain: bool) -> None:
    """Train the stages of CONFIG.yaml; without one, the planted data that comes with m3dist.

    --resume takes values that change no result, such as workers, strategy and max_failures.
    """
    path = arguments[0] if arguments and "=" not in arguments[0] else None
    if resume is not None:
        if path:
            raise click.UsageError("--resume reads the run's own config; give RUN alone")
        from m3dist import pipeline

        config = pipeline.resumed(resume, arguments)
    else:
        config = configs.load(path, arguments[1:] if path else arguments)
    if print_config:
        click.echo(configs.to_yaml(config), nl=False)
        return
    if config.workers and not (dry_run or explain) and _has_data(config):
        from m3dist.distributed import local_ray

        local_ray.start_ahead()
    from m3dist import pipeline

    if dry_run or explain:
        pipeline.check(config)
        data = pipeline.open_data(config)
        if explain:
            _explain(config, data)
        _memory(config, data)
        return
    result = pipeline.run(config)
    _show(config, result)


def _has_data(config: configs.Config) -> bool:
    """Whether a run can begin as far as this machine's disk says, so that an error about data does not wait for Ray."""
    return config.data == "synthetic" or "://" in config.data or Path(config.data, "dataset.json").is_file()


def _memory(config: configs.Config, data: Dataset) -> None:
    from m3dist.training import memory

    for name, size in memory.predict(config, data).items():
        click.echo(f"{name:<13}{size / 2**20:10.1f} MiB")


def _explain(config: configs.Config, data: Dataset) -> None:
    from m3dist.explain import explained

    console = Console(width=None if sys.stdout.isatty() else 110)
    widths = ", ".join(f"{name} ({width} columns)" for name, width in data.modalities.items()) or "none"
    size = f"{data.n_users:,} users, {data.n_items:,} items, {data.size('train'):,} training interactions"
    for line in (f"{config.model} on {config.data}, into {config.out}", f"{size}; features: {widths}"):
        console.print(printable(line), highlight=False, soft_wrap=True, markup=False)
    table = Table("stage", "what it does", "how much", "interactions through steps", show_lines=True)
    rows = explained(config, data)
    for row in rows:
        seen = f"{row.visits:,}" if row.visits else "-"
        table.add_row(*cells(row.name + (" (done)" if row.done else ""), row.about, row.work, seen))
    console.print(table)
    left = sum(row.visits for row in rows if not row.done)
    click.echo(
        f"Time grows with the last column, of which {left:,} are left: a thread of a CPU takes some 100,000 of them\n"
        f"in a second ({_minutes(left / 1e5)} in all), a GPU some millions (m3dist docs benchmarks, m3dist docs gpu).\n"
        "Finished stages are skipped. Memory of each worker, at the most:"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"


def _show(config: configs.Config, result: dict) -> None:
    console = Console()
    if "test" in result:
        table = Table("metric", "validation", "test", title=cells(f"{result['model']} on {result['data']}")[0])
        validation, test = result["validation"], result["test"]
        for name in sorted({*validation, *test}):  # cold items may be held out in one split alone
            table.add_row(*cells(name, *(f"{part[name]:.4f}" if name in part else "-" for part in (validation, test))))
        console.print(table)
    if "mask_auc" in result:
        table = Table("modality", "ROC AUC", "mean mask, planted", "spurious", title="masks of planted dimensions")
        for name, auc in result["mask_auc"].items():
            mean = result["mask_mean"][name]
            table.add_row(*cells(name, f"{auc:.3f}", f"{mean['planted']:.2f}", f"{mean['spurious']:.2f}"))
        console.print(table)
    lines = [f"{result['seconds']:.0f} s; everything is in {config.out}; look next at:"]
    lines.append(f"  tensorboard --logdir {quote(config.out + '/tb')}")
    if "test" in result:
        lines.append(f"  m3dist recommend {quote(config.out)} --out top.parquet")
    if config.data == "synthetic":
        lines.append("  m3dist prepare --help    (your own data)")
    for line in lines:
        console.print(printable(line), highlight=False, soft_wrap=True, markup=False)
