"""`m3dist evaluate RUN`"""

from __future__ import annotations

import click


@click.command(name="evaluate")
@click.argument("run")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--verify", is_flag=True, help="First read every file of the run and of its data set, to find damage.")
def command(run: str, split: str, device: str, verify: bool) -> None:
    """Rank the whole catalogue for every user of a finished RUN and print the metrics.

    Those named /cold count only held-out items without training interactions."""
    from m3dist.serving.run import Run

    opened = Run(run, device)
    if verify:
        opened.verify()
    found = opened.evaluate(split)
    width = max(map(len, found)) + 2
    for name, value in sorted(found.items()):
        click.echo(f"{name:<{width}}{value:.6f}")
