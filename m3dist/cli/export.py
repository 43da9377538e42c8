"""`m3dist export RUN DST --format vectors|faiss|onnx|onnx-histories`"""

from __future__ import annotations

import click


@click.command(name="export")
@click.argument("run")
@click.argument("dst")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["vectors", "faiss", "onnx", "onnx-histories"]),
    default="vectors",
    show_default=True,
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(run: str, dst: str, kind: str, device: str) -> None:
    """Write a finished RUN into the folder DST for other programs.

    users.parquet and items.parquet hold a vector for each id; their inner products are the run's scores. faiss adds an
    index of the items, onnx a model that gives users' best items, onnx-histories one that gives them for any history of
    items. card.json and README.md say what was trained on what, how good it is, and checksums.
    """
    from m3dist.serving.run import Run

    for name, checksum in Run(run, device).export(dst, kind).items():
        click.echo(f"{checksum[:12]}  {dst.rstrip('/')}/{name}")
