"""`m3dist submit [--cluster YAML] -- train CONFIG.yaml KEY=VALUE ...`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from m3dist import credentials
from m3dist.cli.jobs import where

if TYPE_CHECKING:
    from m3dist.cluster import package
    from m3dist.cluster.settings import Cluster

_OF_JOBS = ("cluster", "address", "no_wait", "version")  # options that a manifest ignores
_OF_MANIFESTS = ("patch",)
_KEYS_OF_JOBS = (
    "env",
    "runtime_env",
    "resize_seconds",
)  # of the section `cluster`: what a running cluster can still do
_SHORT = {"image": "image", "namespace": "namespace", "auth_secret": "auth_secret", "claim": "storage.claim"}


@click.command(name="submit", context_settings={"ignore_unknown_options": False})
@where
@click.option("--name", help="Of the job.  Default: made from the command; in a manifest it is unique.")
@click.option("--no-wait", is_flag=True, default=None, help="Print the job's id and return.")
@click.option("--version", metavar="X", help="Use m3dist X, installed on the cluster; send no code.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["job", "rayjob", "claim"]),
    default="job",
    show_default=True,
    help="rayjob: print a KubeRay manifest instead; claim: print the claim for data and results.",
)
@click.option(
    "--settings", metavar="CONFIG.yaml", help="Whose section `cluster` counts.  Default: the command's config."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A value of that section; repeat it.")
@click.option("--patch", multiple=True, metavar="FILE", help="Merged into the manifest; repeat it.")
@click.option("--image", help="The same as --set image=...: registry.example.com/team/m3dist:0.1.0.")
@click.option("--namespace", help="The same as --set namespace=...")
@click.option("--claim", help="The same as --set storage.claim=...: an existing claim that many nodes can write.")
@click.option("--auth-secret", help="The same as --set auth_secret=...: a Secret with key auth_token.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
def command(kind: str, arguments: tuple[str, ...], **given: Any) -> int:
    """Run an m3dist COMMAND on a Ray cluster, follow its log and exit with its code.

    This library and the files named on the command line travel; data does not. Folders (data, out) are paths or URIs
    that every node reaches. Tokens come from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
    """
    from m3dist.cluster import package

    credentials.refuse_keys([*arguments, *given["overrides"]])
    overrides = [*given["overrides"], *(f"{key}={given[name]}" for name, key in _SHORT.items() if given[name])]
    _refuse(kind, given)
    if kind == "claim":
        from m3dist.cluster import rayjob

        if arguments:
            raise click.UsageError("--format claim prints a claim and takes no command")
        job = package.Job(["train"])
        click.echo(rayjob.claim(package.settings(job, overrides, given["settings"])), nl=False)
        return 0
    if not arguments:
        raise click.UsageError("expected a command after --, such as: -- train config.yaml")
    job = package.plan(arguments)
    settings = package.settings(job, overrides, given["settings"])
    if kind == "rayjob":
        return _print(job, settings, given)
    if useless := _useless(overrides):
        raise click.UsageError(f"{useless[0]} describes pods, and this cluster runs already; it needs --format rayjob")
    return _submit(job, settings, given)


def _refuse(kind: str, given: dict[str, Any]) -> None:
    """Raises UsageError: an option that this format would ignore."""
    ignored = _OF_MANIFESTS if kind == "job" else _OF_JOBS if kind == "rayjob" else (*_OF_JOBS, *_OF_MANIFESTS, "name")
    for name in ignored:
        if given[name]:
            other = "needs --format rayjob" if kind == "job" else f"has no effect with --format {kind}"
            raise click.UsageError(f"--{name.replace('_', '-')} {other}")


def _useless(overrides: list[str]) -> list[str]:
    """Overrides that only pods could follow, which a job of a running cluster has none of."""
    keys = [item.partition("=")[0] for item in overrides]
    return [key for key in keys if key.partition(".")[0] not in _KEYS_OF_JOBS]


def _print(job: package.Job, settings: Cluster, given: dict[str, Any]) -> int:
    from m3dist.cluster import rayjob

    plan = rayjob.Plan.of(job, settings, given["name"])
    text = rayjob.manifest(plan, given["patch"])
    for line in rayjob.warnings(plan):
        click.echo(f"warning: {line}", err=True)
    click.echo(text, nl=False)
    return 0


def _submit(job: package.Job, settings: Cluster, given: dict[str, Any]) -> int:
    from m3dist.cluster import jobs, place

    with place.reach(given["cluster"], given["address"]) as reached:
        client = place.client(reached)
        number = jobs.submit(client, job, settings, given["name"], given["version"])
        click.echo(f"job {number}" + (f", run folder {out}" if (out := job.places.get("out")) else ""), err=True)
        if given["no_wait"]:
            click.echo(number)
            return 0
        try:
            return jobs.follow(client, number)
        except KeyboardInterrupt:
            click.echo(f"\nthe job goes on: m3dist jobs logs --follow {number}, m3dist jobs stop {number}", err=True)
            return 130
