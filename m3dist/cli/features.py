"""`m3dist features images|text|audio SRC OUT --model MODEL`"""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="features")
@click.argument("kind", type=click.Choice(["images", "text", "audio"]))
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="A folder with safetensors; for audio mel or mfcc.")
@click.option("--id-column", help="Of a table of texts.  Default: the one with a known name.")
@click.option("--text-column", help="Of a table of texts.  Default: text, description or title.")
@click.option("--on-bad", type=click.Choice(["refuse", "skip"]), default="refuse", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Things at once.")
@click.option(
    "--part", type=click.IntRange(min=1), default=1024, show_default=True, help="Things that are kept at once."
)
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Ray actors that share the work.  Default: none."
)
@click.option("--gpus-per-worker", "gpus", type=click.FloatRange(0), default=0.0, help="A fraction shares one.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(kind: str, src: Path, out: Path, on_bad: str, **given: object) -> None:
    """Make features of pictures, texts or sounds, as a Parquet file OUT that `m3dist prepare --feature` reads.

    SRC is a folder of files named by item id, or for texts a table of ids and texts. The same command goes on where it
    was interrupted.
    """
    from m3dist.features import extract, sources

    id_column, text_column = given.pop("id_column"), given.pop("text_column")
    if given["gpus"] and not given["workers"]:
        raise click.UsageError("--gpus-per-worker is of --workers; give that, too")
    if kind == "text":
        things = sources.of_table(src, id_column, text_column)  # type: ignore[arg-type]
    else:
        things = sources.of_folder(kind, src)
    settings = extract.Settings(kind, skip=on_bad == "skip", **given)  # type: ignore[arg-type]
    extract.extract(things, out, settings, click.echo)
