"""`m3dist doctor [--cluster YAML] [CONFIG.yaml] [KEY=VALUE]...`"""

from __future__ import annotations

import click

from m3dist import credentials
from m3dist.cli.jobs import where
from m3dist.terminal import printable

_SIGNS = {"ok": ("ok", "green"), "fault": ("FAULT", "red"), "skipped": ("-", "yellow")}


@click.command(name="doctor")
@where
@click.option("--storage", metavar="PATH", help="A folder or URI that all nodes should share.  Default: CONFIG's.")
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...")
def command(cluster: str | None, address: str | None, storage: str | None, arguments: tuple[str, ...]) -> int:
    """Check a cluster, and whether CONFIG can run there: one line per check, green or with its fix.

    Versions, the dashboard extra, auth, CPUs and GPUs, shared storage, an all-reduce between nodes, and memory. Exit
    code 1 when something is wrong.
    """
    from m3dist.cluster import doctor, place

    def show(check: doctor.Check) -> None:
        sign, colour = _SIGNS[check.state]
        click.echo(f"{click.style(f'{sign:<6}', fg=colour)}{check.name:<11}{printable(check.text)}", nl=False)
        click.echo(f"; fix: {printable(check.fix)}" if check.fix else "")

    credentials.refuse_keys(list(arguments))
    places = {"storage": storage} if storage else {}
    with place.reach(cluster, address) as reached:
        return 0 if doctor.outside(reached, list(arguments), places, show) else 1
