"""`m3dist prepare download [NAME] [FOLDER]`: fetch a public data set, after saying what its licence is."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from m3dist.data.downloads import SETS, download


@click.command(name="download")
@click.argument("name", required=False, type=click.Choice(list(SETS)), metavar="[NAME]")
@click.argument("folder", default="data/raw", type=click.Path(file_okay=False, path_type=Path), metavar="[FOLDER]")
@click.option("--mirror", metavar="URL", help="Where NAME.zip lies, in place of the source; its checksum is the same.")
def command(name: str | None, folder: Path, mirror: str | None) -> None:
    """Fetch the public data set NAME into FOLDER/NAME and check it; without NAME, show which there are.

    Shows the licence before anything is fetched. Whoever downloads a set accepts its licence. The sets have
    interactions and titles, and no features: train model=ultragcn on them, or add features of your own.
    """
    for one in [name] if name else SETS:
        there = SETS[one]
        click.echo(f"{one}: {there.about}; {there.size / 1e6:.1f} MB\n  licence: {there.licence} ({there.terms})")
    if name is None:
        click.echo("next: m3dist prepare download NAME")
        return
    known = (folder / name).exists()
    done = download(name, folder, mirror)
    click.echo(f"{done}: was there already" if known else f"{done}: as published (SHA-256 {SETS[name].sha256})")
    click.echo(f"next: m3dist prepare auto {quote(str(done))} data/{name} --split random")
    click.echo(f"      m3dist train data=data/{name} out=runs/{name} model=ultragcn")
