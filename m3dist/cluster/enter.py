"""The first process of a job on the cluster: checks that all nodes share its folders, then runs the command."""

from __future__ import annotations

import os
import sys

import click


def shared(places: dict[str, str]) -> None:
    """Raises ValueError when a node does not see what another wrote in `out`, has no `data` or does not answer.

    The process stays connected: Ray drops the job's files when its last connection ends.
    """
    from ray.exceptions import RayError

    from m3dist.cluster import probe
    from m3dist.distributed import ray_train as launch

    try:
        launch.connect()
        faults = [fault for name, value in places.items() for fault in probe.storage(name, value)]
    except (RayError, OSError) as error:
        raise ValueError(f"the cluster does not answer: {str(error).strip() or type(error).__name__}") from None
    if faults:
        raise ValueError("\n".join(faults))


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--place", "places", multiple=True)
@click.option("--version", "wanted")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(places: tuple[str, ...], wanted: str | None, arguments: tuple[str, ...]) -> None:
    import m3dist
    from m3dist.cli import main as cli

    try:
        if wanted and wanted != m3dist.__version__:
            raise ValueError(f"the cluster has m3dist {m3dist.__version__}, not {wanted}; rebuild its image")
        os.environ.setdefault("RAY_ADDRESS", "auto")
        shared(dict(place.split("=", 1) for place in places))
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    cli.main(list(arguments))


if __name__ == "__main__":
    command()
