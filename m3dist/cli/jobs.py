"""`m3dist jobs list | logs JOB | stop JOB`"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def where(function: _F) -> _F:
    """The options that say which cluster."""
    function = click.option("--address", help="Of Ray's dashboard, such as http://HOST:8265.")(function)
    return click.option("--cluster", metavar="YAML", help="A cluster file; see cluster/.")(function)


@click.group()
def command() -> None:
    """List, read and stop jobs of a cluster."""


@command.command(name="list")
@where
def _list(cluster: str | None, address: str | None) -> None:
    """Every job submitted to the cluster, the latest first."""
    from rich.console import Console
    from rich.table import Table

    from m3dist.cluster import jobs, place
    from m3dist.terminal import cells

    with place.reach(cluster, address) as reached:
        rows = jobs.listed(place.client(reached))
    if not rows:
        click.echo("no jobs")
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*cells(*row.values()))
    Console(width=None if sys.stdout.isatty() else 300).print(table)


@command.command()
@where
@click.argument("job")
@click.option("--follow", is_flag=True, help="Go on until it ends; exit with its code.")
def logs(cluster: str | None, address: str | None, job: str, follow: bool) -> int:
    """Print what JOB wrote."""
    from m3dist.cluster import jobs, place

    with place.reach(cluster, address) as reached:
        client = place.client(reached)
        if follow:
            return jobs.follow(client, job)
        jobs.info(client, job)
        click.echo(client.get_job_logs(job), nl=False)
    return 0


@command.command()
@where
@click.argument("job")
def stop(cluster: str | None, address: str | None, job: str) -> None:
    """Stop JOB and wait until it has ended."""
    from m3dist.cluster import jobs, place

    with place.reach(cluster, address) as reached:
        click.echo(f"{job}: {jobs.stop(place.client(reached), job)}")
