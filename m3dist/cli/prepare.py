"""`m3dist prepare FORMAT SRC DST`: turn published data into a prepared data set and say what is in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

import click

from m3dist import config
from m3dist.data.dataset import SPLITS

_F = TypeVar("_F", bound=Callable[..., Any])
_SRC = click.argument("src", type=click.Path(path_type=Path, resolve_path=True))
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


def _named(flag: str, what: str) -> Callable[[_F], _F]:
    return click.option(flag, multiple=True, callback=_named_paths, metavar="NAME=PATH", help=what)


_FEATURE = _named("--feature", "A modality's file, in place of those found in SRC (relative paths: here, then SRC).")
_PRESENT = _named("--present", "A modality's .npy of booleans: which items have it.")


@click.group(context_settings={"show_default": True})
def command() -> None:
    """Import a data set in one of these FORMATs: validate it, number its ids, write it as DST.

    Nothing is left at DST when the data is refused.
    """


@command.command()
@_SRC
@_DST
@click.option("--user-column", metavar="NAME", help="Default: userID, user_id, user or uid.")
@click.option("--item-column", metavar="NAME", help="Default: itemID, item_id, item, iid, movieId or asin.")
@click.option("--rating-column", metavar="NAME", help="Used with --threshold.  Default: rating, score or stars.")
@click.option("--threshold", type=float, help="Keep interactions rated at least this.  Default: keep all.")
@click.option("--time-column", metavar="NAME", help="For --split leave-last-out and temporal.  Default: timestamp.")
@click.option("--split-column", metavar="NAME", help="Holds train, val, test or 0, 1, 2.  Default: x_label or split.")
@click.option("--no-header", is_flag=True, help="Text tables without header; columns are named 1, 2, ...")
@click.option("--items", type=click.Path(path_type=Path), help="Items table; its row i is row i of .npy features.")
@_FEATURE
@_PRESENT
@click.option("--split", type=click.Choice(["random", "leave-last-out", "temporal"]), help="For data without a split.")
@click.option("--ratios", type=(float, float, float), default=(0.8, 0.1, 0.1), help="Shares of train, val and test.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of --split random and --cold.")
@click.option(
    "--cold",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="With --split: hold out this share of the items, half of them new in val, half in test.",
)
@_OVERLAP
def tables(src: Path, dst: Path, overlap: str, no_header: bool, **given: Any) -> None:
    """CSV, TSV or Parquet, a file or a folder.

    A folder holds train, val and test tables or one table of interactions; optionally an items table, features
    (visual_x.npy is modality `visual`) and has_visual.npy. Features are .npy matrices whose row i is item i, or
    Parquet tables with an item id column.
    """
    from m3dist.data.importers import common
    from m3dist.data.importers import tables as importer

    if given["items"]:
        given["items"] = _beside(given["items"], src)
    options = importer.Options(header=not no_header, **_files(src, given), **given)
    report(dst, common.write(importer.read(src, options), dst, overlap))


@command.command()
@_SRC
@_DST
@click.option("--users", type=click.IntRange(min=1), help="Number of users.  Default: the highest user id and one.")
@_FEATURE
@_PRESENT
@_OVERLAP
def invrl(src: Path, dst: Path, overlap: str, users: int | None, **given: Any) -> None:
    """InvRL and MMGCN folders.

    train.npy or user_item_train_dict.npy or user_item_dict.npy, val_full.npy, test_full.npy, and feat_v, feat_a,
    feat_t (visual, acoustic, textual) as .npy or .pt.
    """
    from m3dist.data.importers import common
    from m3dist.data.importers import invrl as importer

    report(dst, common.write(importer.read(src, users=users, **_files(src, given)), dst, overlap))


@command.command()
@_SRC
@_DST
@_FEATURE
@_PRESENT
@_OVERLAP
def mmrec(src: Path, dst: Path, overlap: str, **given: Any) -> None:
    """MMRec folders: one .inter table with x_label, and image_feat.npy, text_feat.npy or other *_feat.npy."""
    from m3dist.data.importers import common
    from m3dist.data.importers import mmrec as importer

    report(dst, common.write(importer.read(src, **_files(src, given)), dst, overlap))


@command.command()
@_SRC
@_DST
@_FEATURE
@_PRESENT
@_OVERLAP
def scipy(src: Path, dst: Path, overlap: str, **given: Any) -> None:
    """Sparse matrices, as LATTICE, MMSSL and LLMRec publish them.

    train_mat, val_mat, test_mat (.npz, .pkl or no suffix; .json of {user: [items]}) and *_feat.npy.
    """
    from m3dist.data.importers import common, matrices

    report(dst, common.write(matrices.read(src, **_files(src, given)), dst, overlap))


def _synthetic(dst: Path, seed: int, **given: Any) -> None:
    """Planted data: features with invariant and spurious dimensions, and interactions from known environments."""
    from m3dist.data import synthetic as planted

    report(dst, planted.write(dst, config.validate(given, "synthetic", config.Synthetic), seed))


def _section_options(section: type[config.Section]) -> list[click.Option]:
    """One option per field of a config section; the section validates the values."""
    options = []
    for name, field in section.model_fields.items():
        kind: Any = click.STRING
        if get_origin(field.annotation) is Literal:
            kind = click.Choice(list(field.annotation.__args__))  # type: ignore[union-attr]
        elif type(field.default) in (int, float, bool):
            kind = type(field.default)
        flag = f"--{name.replace('_', '-')}"
        options.append(click.Option([flag], type=kind, default=field.default, show_default=True))
    return options


command.add_command(
    click.Command(
        "synthetic",
        callback=_synthetic,
        params=[
            click.Argument(["dst"], type=click.Path(path_type=Path)),
            *_section_options(config.Synthetic),
            click.Option(["--seed"], type=click.IntRange(min=0), default=0, show_default=True),
        ],
        help=_synthetic.__doc__,
    )
)


def _files(src: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Take --feature and --present out of `given`."""
    return {
        "features": {name: _beside(path, src) for name, path in given.pop("feature").items()},
        "present": {name: _beside(path, src) for name, path in given.pop("present").items()},
    }


def _beside(path: Path, src: Path) -> Path:
    """A path given by the user: as it is, or inside the source folder."""
    return src / path if not path.exists() and (src / path).exists() else path


def report(dst: Path, meta: dict[str, Any]) -> None:
    """Print what a prepared data set holds."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(str(dst)), title_justify="left", show_header=False)
    rows: list[tuple[str, str]] = [("users", f"{meta['users']:,}"), ("items", f"{meta['items']:,}")]
    for split in SPLITS:
        rows.append((f"{split} interactions", f"{meta['interactions'][split]:,}"))
    rows.append(("sparsity", f"{100 * meta['sparsity']:.4f} %"))
    for name, width in meta["modalities"].items():
        lacking = meta["lacking"].get(name, 0)
        rows.append((f"modality {name}", f"width {width}, {lacking:,} items lack it"))
    if not meta["modalities"]:
        rows.append(("modalities", "none: model=ultragcn trains on ids"))
    cold = meta["cold_items"]
    rows.append(("cold items", f"{cold['all']:,} (in val {cold['val']:,}, in test {cold['test']:,})"))
    rows.append(("cold users", f"{meta['cold_users']:,}"))
    rows.append(("duplicates dropped", _counts(meta["duplicates_dropped"])))
    if any(meta["overlaps_dropped"].values()):
        rows.append(("overlaps dropped", _counts(meta["overlaps_dropped"])))
    rows.append(("fingerprint", meta["fingerprint"]))
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    for note in meta["provenance"].get("notes", []):
        console.print(f"note: {note}", markup=False)


def _counts(by_split: dict[str, int]) -> str:
    total = sum(by_split.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in by_split.items() if n)
    return f"{total:,}" + (f" ({parts})" if parts else "")
