"""`m3dist prepare FORMAT SRC DST`: turn published data into a prepared data set and say what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from m3dist.data.dataset import SPLITS, DataError

_SRC = click.argument("src", type=click.Path(path_type=Path))
_DST = click.argument("dst", type=click.Path(path_type=Path))
_OVERLAP = click.option(
    "--overlap",
    type=click.Choice(["error", "drop"]),
    default="error",
    show_default=True,
    help="A pair in two splits: refuse, or keep it in train before val before test.",
)


def _named_paths(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """NAME=PATH options as a dict."""
    out: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r}: expected NAME=PATH")
        if name in out:
            raise click.BadParameter(f"{name!r} is given twice")
        out[name] = Path(path)
    return out


def _named(flag: str, what: str) -> Callable[..., Any]:
    return click.option(flag, multiple=True, callback=_named_paths, metavar="NAME=PATH", help=what)


@click.group()
def command() -> None:
    """Import a data set: validate it, number its ids, write it as DST.

    Nothing is left at DST when the data is refused.
    """


@command.command()
@_SRC
@_DST
@click.option("--user-column", metavar="NAME")
@click.option("--item-column", metavar="NAME")
@click.option("--rating-column", metavar="NAME", help="Used with --threshold.")
@click.option("--threshold", type=float, help="Keep interactions rated at least this. Default: keep all.")
@click.option("--time-column", metavar="NAME", help="For --split leave-last-out and temporal.")
@click.option("--split-column", metavar="NAME", help="Holds train, val, test or 0, 1, 2.")
@click.option("--no-header", is_flag=True, help="Text tables without header; columns are named 1, 2, ...")
@click.option("--items", type=click.Path(path_type=Path), help="Items table; its row i is row i of .npy features.")
@_named("--feature", "A modality's .npy, .pt or .parquet file, in place of those found in SRC. Repeatable.")
@_named("--present", "A modality's .npy of booleans: which items have it. Repeatable.")
@click.option(
    "--split",
    type=click.Choice(["random", "leave-last-out", "temporal"]),
    help="How to split data that has no split.",
)
@click.option("--ratios", type=(float, float, float), default=(0.8, 0.1, 0.1), show_default=True, help="train val test")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of --split random.")
@_OVERLAP
def tables(src: Path, dst: Path, overlap: str, no_header: bool, **given: Any) -> None:
    """CSV, TSV or Parquet, a file or a folder.

    A folder holds train, val and test tables or one table of interactions; optionally an items table, features
    (visual_x.npy is modality `visual`) and has_visual.npy. Features are .npy matrices whose row i is item i, or
    Parquet tables with an item id column.
    """
    from m3dist.data.formats import common
    from m3dist.data.formats import tables as importer

    features = {name: _beside(path, src) for name, path in given.pop("feature").items()}
    present = {name: _beside(path, src) for name, path in given.pop("present").items()}
    options = importer.Options(header=not no_header, features=features, present=present, **given)
    report(dst, common.write(importer.read(src, options), dst, overlap))


def _beside(path: Path, src: Path) -> Path:
    """A path given by the user: as it is, or inside the source folder."""
    return src / path if not path.exists() and (src / path).exists() else path


def report(dst: Path, meta: dict[str, Any]) -> None:
    """Print what a prepared data set holds."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{dst}", title_justify="left", show_header=False)
    rows: list[tuple[str, str]] = [("users", f"{meta['users']:,}"), ("items", f"{meta['items']:,}")]
    for split in SPLITS:
        rows.append((f"{split} interactions", f"{meta['interactions'][split]:,}"))
    rows.append(("sparsity", f"{100 * meta['sparsity']:.4f} %"))
    for name, width in meta["modalities"].items():
        lacking = meta["lacking"].get(name, 0)
        rows.append((f"modality {name}", f"width {width}, {lacking:,} items lack it"))
    if not meta["modalities"]:
        rows.append(("modalities", "none: training needs at least one"))
    cold = meta["cold_items"]
    rows.append(("cold items", f"{cold['all']:,} (in val {cold['val']:,}, in test {cold['test']:,})"))
    rows.append(("cold users", f"{meta['cold_users']:,}"))
    rows.append(("duplicates dropped", _counts(meta["duplicates_dropped"])))
    if any(meta["overlaps_dropped"].values()):
        rows.append(("overlaps dropped", _counts(meta["overlaps_dropped"])))
    rows.append(("fingerprint", meta["fingerprint"]))
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if click.get_text_stream("stdout").isatty() else 100)
    console.print(table)
    for note in meta["provenance"].get("notes", []):
        console.print(f"note: {note}", markup=False)


def _counts(by_split: dict[str, int]) -> str:
    total = sum(by_split.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in by_split.items() if n)
    return f"{total:,}" + (f" ({parts})" if parts else "")


__all__ = ["DataError", "command", "report"]
