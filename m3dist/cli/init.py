"""`m3dist init [DIR]`"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from shlex import quote

import click


@click.command(name="init")
@click.argument("target", default=".", type=click.Path(file_okay=False, path_type=Path), metavar="[DIR]")
def command(target: Path) -> None:
    """Copy examples into DIR: config.yaml, searches (tune/) and places to run (cluster/). Overwrites nothing."""
    from m3dist import examples

    files = examples.files()
    if there := [name for name in files if (target / name).exists()]:
        raise ValueError(f"{target}: already has {', '.join(there)}; nothing was copied, choose another DIR")
    for name, source in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / name)
        if name.endswith(".sh"):  # a wheel does not keep the bit everywhere
            os.chmod(target / name, 0o755)
        click.echo(target / name)
    click.echo(f"next: m3dist train {quote(str(target / 'config.yaml'))}")
