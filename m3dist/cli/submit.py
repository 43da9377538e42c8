"""`m3dist submit [--cluster YAML] -- train CONFIG.yaml KEY=VALUE ...`"""

from __future__ import annotations

from typing import Any

import click

from m3dist.cli.jobs import where


@click.command(name="submit", context_settings={"ignore_unknown_options": False})
@where
@click.option("--name", help="Of the job, as lists and Ray's dashboard show it.  Default: the command.")
@click.option("--no-wait", is_flag=True, help="Print the job's id and return.")
@click.option("--version", "version", metavar="X", help="Use m3dist X, installed on the cluster; send no code.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["job", "rayjob"]),
    default="job",
    show_default=True,
    help="rayjob: print a KubeRay manifest instead; then the options below count.",
)
@click.option("--image", help="With m3dist and its libraries, as cluster/Dockerfile makes it.")
@click.option("--mount", help="Where pods see the shared volume.")
@click.option("--claim", help="An existing PersistentVolumeClaim that many nodes can write.  Default: ask for one.")
@click.option("--storage", help="Size of the claim that is asked for.")
@click.option("--memory", help="Of each pod.")
@click.option("--ttl", type=click.IntRange(min=0), help="Seconds that the cluster outlives the job.")
@click.option("--backoff", type=click.IntRange(min=0), help="Further tries, each on a new cluster.")
@click.option("--auth-secret", help="A Secret with key auth_token; turns Ray's token login on.")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
def command(
    cluster: str | None,
    address: str | None,
    name: str | None,
    no_wait: bool,
    version: str | None,
    kind: str,
    arguments: tuple[str, ...],
    **given: Any,
) -> int:
    """Run an m3dist COMMAND on a Ray cluster, follow its log and exit with its code.

    This library and the files named on the command line travel; data does not. Folders (data, out) are paths or URIs
    that every node reaches. Tokens come from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
    """
    from m3dist.cluster import jobs, package, place

    place.refuse_secrets(list(arguments))
    given = {key: value for key, value in given.items() if value is not None}
    if kind == "rayjob":
        from m3dist.cli.main import COMMANDS
        from m3dist.cluster import rayjob

        if arguments[0] in COMMANDS and arguments[0] != "train":
            raise ValueError(
                f"--format rayjob: prints a manifest for train, not for {arguments[0]}; submit that as a job"
            )
        words = list(arguments[1:] if arguments[0] == "train" else arguments)
        options = rayjob.Options(**given | ({"name": name} if name else {}))
        click.echo(rayjob.manifest(words, options), nl=False)
        return 0
    if given:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs --format rayjob")
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
