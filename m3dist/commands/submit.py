"""`m3dist submit [--cluster YAML] -- train CONFIG.yaml KEY=VALUE ...`"""

from __future__ import annotations

import click

from m3dist.commands.jobs import where


@click.command(name="submit", context_settings={"ignore_unknown_options": False})
@where
@click.option("--name", help="Of the job, as lists and Ray's dashboard show it.  Default: the command.")
@click.option("--no-wait", is_flag=True, help="Print the job's id and return.")
@click.option("--version", "version", metavar="X", help="Use m3dist X, installed on the cluster; send no code.")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
def command(
    cluster: str | None,
    address: str | None,
    name: str | None,
    no_wait: bool,
    version: str | None,
    arguments: tuple[str, ...],
) -> int:
    """Run an m3dist COMMAND on a Ray cluster, follow its log and exit with its code.

    This library and the files named on the command line travel; data does not. Folders (data, out) are paths or URIs
    that every node reaches. Tokens come from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
    """
    from m3dist.submit import jobs, package, place

    place.refuse_secrets(list(arguments))
    job_plan = package.plan(arguments)
    with place.reach(cluster, address) as reached:
        client = place.client(reached)
        job = jobs.submit(client, arguments, name, version)
        click.echo(f"job {job}" + (f", run folder {out}" if (out := job_plan.places.get("out")) else ""), err=True)
        if no_wait:
            click.echo(job)
            return 0
        try:
            return jobs.follow(client, job)
        except KeyboardInterrupt:
            click.echo(f"\nthe job goes on: m3dist jobs logs --follow {job}, m3dist jobs stop {job}", err=True)
            return 130
