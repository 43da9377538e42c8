"""`m3dist tune SEARCH.yaml key=value ...`"""

from __future__ import annotations

import math

import click


@click.command(name="tune")
@click.argument("search", metavar="SEARCH.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Check the search, say what it would do, and stop.")
def command(search: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Search for values that are best on validation data; running the same command again goes on.

    KEY is a key of the search file (budget.trials, out) or of the base config (data, merge.epochs, base.seed).
    """
    from rich.console import Console

    from m3dist.search import space

    plan = space.load(search, overrides)
    console = Console()
    if dry_run:
        describe(plan, console)
        return
    from m3dist.search import driver, report

    summary = driver.run(plan)
    report.show(plan, summary, console)
    if summary["best"] is None:
        raise report.fruitless(summary)


def describe(plan, console) -> None:  # type: ignore[no-untyped-def]
    """Print what a plan will try."""
    from rich.table import Table

    from m3dist.search.rungs import Clock, Rungs
    from m3dist.terminal import cells, printable

    table = Table("value", "changes first", "tries")
    for name, dimension in plan.space.items():
        kind = next(k for k in ("grid", "choice", "uniform", "log_uniform", "randint") if getattr(dimension, k))
        when = "".join(f" when {key}={value}" for key, value in (dimension.when or {}).items())
        ends = ", ".join(map(str, dimension.ends()))
        table.add_row(*cells(name, plan.stage[name], f"{kind} {ends}{when}"))
    console.print(table)
    clock, scheduler = Clock(plan.extremes(), plan.dataset), plan.search.scheduler
    size = f"{plan.size:,.0f}" if math.isfinite(plan.size) else "without end"
    stages = ", ".join(f"{stage} {epochs}" for stage, epochs in clock.length.items())
    console.print(f"points: {size}; epochs of a whole trial: {clock.total} ({stages})", markup=False, highlight=False)
    if scheduler.kind == "asha":
        rungs = Rungs(clock, plan.search.mode, scheduler.grace, scheduler.reduction)
        after = "; ".join(f"{stage} after {', '.join(map(str, at))}" for stage, at in rungs.milestones.items() if at)
        console.print(f"trials are compared in: {after or 'no stage'}", markup=False, highlight=False)
    console.print(printable(f"folder: {plan.out}"), highlight=False, markup=False)
