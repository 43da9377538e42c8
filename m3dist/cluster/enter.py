"""The first process of a job on the cluster: checks that all nodes share its folders, then runs the command."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import click

from m3dist.cluster.package import CARRIED


def shared(places: dict[str, str]) -> None:
    """Raises ValueError when a node does not see what another wrote in `out`, has no `data` or does not answer.

    The process stays connected: Ray drops the job's files when its last connection ends.
    """
    from ray.exceptions import RayError

    from m3dist.cluster.place import ClusterFailed
    from m3dist.distributed import nodes, placement

    try:
        placement.connect()
        faults = [fault for name, value in places.items() for fault in nodes.storage_faults(name, value)]
    except (RayError, OSError) as error:
        raise ClusterFailed(f"the cluster does not answer: {str(error).strip() or type(error).__name__}") from None
    if faults:
        raise ValueError("\n".join(faults))


def start_in(files: str | None, start: str) -> None:
    """Go to the folder that the command was given in: below `files`, or a copy of what the environment carries."""
    if carried := os.environ.pop(CARRIED, None):
        files = tempfile.mkdtemp(prefix="m3dist-job-")
        for name, text in json.loads(carried).items():
            path = Path(files) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    os.chdir(Path(files or ".") / start)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--place", "places", multiple=True)
@click.option("--version", "wanted")
@click.option("--files")
@click.option("--start", default=".")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    places: tuple[str, ...], wanted: str | None, files: str | None, start: str, arguments: tuple[str, ...]
) -> None:
    import m3dist
    from m3dist.cli import main as cli

    def begin() -> int:
        if wanted and wanted != m3dist.__version__:
            raise ValueError(f"the cluster has m3dist {m3dist.__version__}, not {wanted}; rebuild its image")
        os.environ.setdefault("RAY_ADDRESS", "auto")
        start_in(files, start)
        shared(dict(place.split("=", 1) for place in places))
        return 0

    if code := cli.ended(begin):
        sys.exit(code)
    cli.main(list(arguments))


if __name__ == "__main__":
    command()
