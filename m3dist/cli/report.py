"""`m3dist report RUN [RUN...] --out report.html`"""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="report")
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", required=True, help="HTML file to write: a path or a URI.")
@click.option("--user", "users", multiple=True, help="Original id of a user whose lists are shown; repeat it.")
@click.option("--users", "count", type=click.IntRange(0, 100), default=3, show_default=True, help="Else so many users.")
@click.option("--k", type=click.IntRange(1, 100), default=8, show_default=True, help="Items of a list.")
@click.option("--pictures", type=click.Path(path_type=Path), help="A folder of pictures named by item id: B001.jpg.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(runs: tuple[str, ...], out: str, users: tuple[str, ...], count: int, **given: object) -> None:
    """Write one page on finished RUNs of the same data, which needs no network and no other file.

    Metrics with intervals, paired tests against the first run, sparse users and cold items, curves, masks,
    environments, fusion weights, and what some users are recommended.
    """
    from m3dist.report import page

    size = page.write(list(runs), out, page.Request(list(users), count, **given))  # type: ignore[arg-type]
    click.echo(f"{out}: {len(runs)} run(s), {size:,} bytes")
