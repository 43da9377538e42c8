"""`m3dist docs [PAGE]`"""

from __future__ import annotations

import difflib
from pathlib import Path

import click

from m3dist import examples


@click.command(name="docs")
@click.argument("page", required=False, metavar="[PAGE]", shell_complete=lambda *given: _named(given[-1]))
def command(page: str | None) -> None:
    """Show a PAGE of the documentation, such as data; without PAGE, which pages there are."""
    pages = examples.pages()
    if page is None:
        width = max(map(len, pages)) + 2
        for name, path in pages.items():
            click.echo(f"{name:<{width}}{_title(path)}")
        click.echo("next: m3dist docs PAGE")
        return
    name = page.removeprefix("docs/").removesuffix(".md")
    if name not in pages:
        near = difflib.get_close_matches(name, pages, n=1)
        raise ValueError(f"{page}: no such page; " + (f"did you mean {near[0]}?" if near else "m3dist docs lists them"))
    click.echo_via_pager(pages[name].read_text())


def _named(begins: str) -> list[str]:
    """What the shell completes."""
    return [name for name in examples.pages() if name.startswith(begins)]


def _title(path: Path) -> str:
    return path.read_text().partition("\n")[0].removeprefix("# ")
